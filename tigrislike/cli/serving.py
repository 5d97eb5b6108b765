"""`tigrislike serve` and `edge`: what runs until it is stopped; and `version`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tigrislike import __version__
from tigrislike.cli.base import app, ca_bundle, command, fail
from tigrislike.config import Settings

if TYPE_CHECKING:
    from tigrislike.server import Ready


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@command(app, "serve")
@command(app, "serve")
def serve(
    settings: Settings,
    *,
    ready_fd: Annotated[
        int | None,
        typer.Option(
            help="File descriptor to write one JSON line to (endpoint, region, root keys) when requests are "
            "answered; for programs that start a node.",
            metavar="N",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a node: an S3 endpoint over a data directory.

    Every setting can also be given by its environment variable, or in a settings file. The root user's keys come
    from TIGRISLIKE_ROOT_ACCESS_KEY and TIGRISLIKE_ROOT_SECRET_KEY, and are else made at first start and printed.
    """
    from tigrislike.server import StartError
    from tigrislike.server import serve as run

    def on_ready(ready: Ready) -> None:
        typer.echo(banner(ready, secret_is_ours=not settings.root_secret_key))
        sys.stdout.flush()
        if ready_fd is not None:
            facts = {
                "endpoint": ready.endpoint,
                "region": ready.region,
                "access_key_id": ready.access_key_id,
                "secret_access_key": ready.secret_access_key,
                "pid": os.getpid(),
                **({"admin_endpoint": ready.admin_endpoint} if ready.admin_endpoint else {}),
            }
            with os.fdopen(ready_fd, "w") as announcement:
                announcement.write(json.dumps(facts) + "\n")

    try:
        status = run(settings, on_ready)
    except StartError as error:
        fail(str(error))
    raise typer.Exit(status)


def banner(ready: Ready, *, secret_is_ours: bool) -> str:
    """What a person needs to use the node. A secret that the operator gave is not printed back."""
    secret = ready.secret_access_key if secret_is_ours else '"$TIGRISLIKE_ROOT_SECRET_KEY"'
    return f"""\
tigrislike {__version__} is ready
  endpoint  {ready.endpoint}
  region    {ready.region} (clients may sign for any region)
  console   {ready.admin_endpoint or ready.endpoint}/_tigrislike/console

export AWS_ENDPOINT_URL={ready.endpoint}
export AWS_ACCESS_KEY_ID={ready.access_key_id}
export AWS_SECRET_ACCESS_KEY={secret}
export AWS_DEFAULT_REGION=auto
export AWS_REGION=auto
"""


@app.command()
def edge(
    region: Annotated[
        list[str],
        typer.Option(help="A region and the URLs of its nodes; once for each region.", metavar="NAME=URL[,URL...]"),
    ],
    *,
    listen: Annotated[str, typer.Option(help="Where to listen; port 0 takes a free one.", metavar="HOST:PORT")] = (
        "127.0.0.1:9080"
    ),
    mode: Annotated[
        str, typer.Option(help="`forward`, or `redirect`: GET, HEAD and PUT are answered 307.", metavar="MODE")
    ] = "forward",
    domain: Annotated[
        str, typer.Option(help="The nodes' --domain, for redirects of BUCKET.DOMAIN.", metavar="NAME")
    ] = "",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file of the certificate chain: https only.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's private key.")] = None,
    check_interval: Annotated[
        str, typer.Option(help="How often each node is asked whether it is ready.", metavar="DURATION")
    ] = "1s",
    ready_fd: Annotated[
        int | None,
        typer.Option(help="File descriptor to write the URL to when requests are answered.", metavar="N"),
    ] = None,
) -> None:
    """Send each request to the nearest healthy region: for places without anycast or GeoDNS.

    Nodes with https are verified with the system's certificates, or those of AWS_CA_BUNDLE.
    """
    import logging
    import ssl

    from tigrislike.config import parse_duration
    from tigrislike.edge import EdgeError, parse_regions, serve_edge

    def on_ready(url: str) -> None:
        typer.echo(f"tigrislike edge {__version__} is ready at {url}")
        sys.stdout.flush()
        if ready_fd is not None:
            with os.fdopen(ready_fd, "w") as announcement:
                announcement.write(url + "\n")

    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        fail(f"--listen {listen!r}: expected HOST:PORT")
    if mode not in ("forward", "redirect"):
        fail(f"--mode {mode!r}: expected forward or redirect")
    if (tls_cert is None) != (tls_key is None):
        fail("--tls-cert and --tls-key go together")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        interval_s = parse_duration(check_interval)
        if interval_s <= 0:
            raise ValueError("must be more than zero")
    except ValueError as error:
        fail(f"--check-interval {check_interval!r}: {error}")
    try:
        tls = None
        if tls_cert is not None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(tls_cert, tls_key)
        nodes = parse_regions(region, ca_bundle())
        serve_edge(
            nodes,
            host.strip("[]"),
            int(port),
            mode="redirect" if mode == "redirect" else "forward",
            domain=domain.strip(".").lower(),
            tls=tls,
            check_interval_s=interval_s,
            on_ready=on_ready,
        )
    except (EdgeError, OSError) as error:
        fail(str(error))
