# The store as one image: slim Python, one unprivileged user, one volume.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY tigrislike ./tigrislike
RUN python -m venv /opt/tigrislike && /opt/tigrislike/bin/pip install --no-cache-dir .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin tigrislike \
    && install -d -o tigrislike -g tigrislike -m 0700 /data
COPY --from=build /opt/tigrislike /opt/tigrislike
ENV PATH=/opt/tigrislike/bin:$PATH PYTHONUNBUFFERED=1 \
    TIGRISLIKE_HOST=0.0.0.0 TIGRISLIKE_PORT=9000 TIGRISLIKE_DATA_DIR=/data
USER tigrislike
VOLUME /data
EXPOSE 9000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9000/readyz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tigrislike"]
CMD ["serve"]
