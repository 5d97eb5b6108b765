# The store as one image: slim Python, FoundationDB's client library, one unprivileged user, one volume.
#
# The library is the one of FoundationDB's own image of the version that the cluster runs: a library speaks the protocol
# of its own release line only. Both are built for amd64 and arm64. On amd64 an odd last number needs a CPU with AVX; the
# even one before it is the same release without.
ARG FDB_VERSION=7.3.77
FROM foundationdb/foundationdb:${FDB_VERSION} AS foundationdb

FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY tigrislike ./tigrislike
RUN python -m venv /opt/tigrislike && /opt/tigrislike/bin/pip install --no-cache-dir ".[otel]"

FROM python:3.12-slim
RUN useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin tigrislike \
    && install -d -o tigrislike -g tigrislike -m 0700 /data /keys
COPY --from=foundationdb /usr/lib/libfdb_c.so /usr/lib/libfdb_c.so
COPY --from=build /opt/tigrislike /opt/tigrislike
ENV PATH=/opt/tigrislike/bin:$PATH PYTHONUNBUFFERED=1 \
    TIGRISLIKE_HOST=0.0.0.0 TIGRISLIKE_PORT=9000 TIGRISLIKE_DATA_DIR=/data
# A library that is missing, or that the binding refuses, ends the build here and not a node's start.
RUN ldconfig && python -c "from tigrislike.metadata.kv.fdb_client import load_binding; load_binding()"
USER 10001
VOLUME /data
EXPOSE 9000
# Where the variables say that the node is; a flag of `serve` is not seen here. The certificate is for the name that clients
# use, so it is not verified. Not urllib, which would ask the proxy that the environment may name.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import http.client, os, ssl; \
        address = '127.0.0.1', os.environ.get('TIGRISLIKE_PORT') or 9000; \
        node = http.client.HTTPSConnection(*address, timeout=2, context=ssl._create_unverified_context()) \
            if os.environ.get('TIGRISLIKE_TLS_CERT') else http.client.HTTPConnection(*address, timeout=2); \
        node.request('GET', '/readyz'); \
        raise SystemExit(node.getresponse().status != 200)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tigrislike"]
CMD ["serve"]
