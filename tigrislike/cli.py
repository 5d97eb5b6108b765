"""The command line: `serve`, `storage create`, `admin fsck`, `admin rotate-master-key`, `version`.

Each command imports what it needs when it runs, so that `--help` and `version` answer at once. What a command prints
to standard output is meant for pasting or parsing; everything else goes to standard error. Exit status: 0 done,
1 refused or failed (with one line that says why), 2 a command line that makes no sense.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tigrislike import __version__
from tigrislike.config import ConfigError, Settings, load_settings, options, unknown_variables

if TYPE_CHECKING:
    from tigrislike.server import Ready

app = typer.Typer(
    name="tigrislike",
    help="An S3-compatible, regional-first object store that runs beside the models it feeds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
storage = typer.Typer(help="Buckets with a key pair of their own.", no_args_is_help=True)
admin = typer.Typer(help="For operators, on the node itself.", no_args_is_help=True)
app.add_typer(storage, name="storage")
app.add_typer(admin, name="admin")


def main() -> None:
    """The entry point of the `tigrislike` script."""
    app()


def _fail(message: str) -> NoReturn:
    typer.echo(f"tigrislike: {message}", err=True)
    raise typer.Exit(1)


def _with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag per setting, and call it with the resulting `Settings` as its first argument.

    The flags are made from `Settings`, so that each exists once: as a field, with its default and its help.
    """
    own = inspect.signature(command, eval_str=True)
    parameters = [parameter for name, parameter in own.parameters.items() if name != "settings"]
    for option in options():
        if option.secret:
            continue
        help_text = f"{option.help} (Default: {option.shown}; environment: {option.variable}.)"
        annotation = Annotated[
            str | None, typer.Option(f"--{option.name}", help=help_text, metavar="VALUE", show_default=False)
        ]
        parameters.append(
            inspect.Parameter(option.attribute, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    settings_file = Annotated[
        Path | None,
        typer.Option("--settings", help="TOML file of settings; flags and environment stand above it.", metavar="FILE"),
    ]
    parameters.append(
        inspect.Parameter("settings_file", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=settings_file)
    )

    def run(**values: Any) -> None:
        flags = {option.attribute: values.pop(option.attribute) for option in options() if not option.secret}
        file = values.pop("settings_file")
        try:
            settings = load_settings(flags, os.environ, file)
        except ConfigError as error:
            _fail(str(error))
        for warning in unknown_variables(os.environ):
            typer.echo(f"tigrislike: warning: {warning}", err=True)
        command(settings, **values)

    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def _serve(
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
    from tigrislike.server import BindError, serve

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
            }
            with os.fdopen(ready_fd, "w") as announcement:
                announcement.write(json.dumps(facts) + "\n")

    try:
        status = serve(settings, on_ready)
    except BindError as error:
        _fail(str(error))
    raise typer.Exit(status)


def banner(ready: Ready, *, secret_is_ours: bool) -> str:
    """What a person needs to use the node. A secret that the operator gave is not printed back."""
    secret = ready.secret_access_key if secret_is_ours else '"$TIGRISLIKE_ROOT_SECRET_KEY"'
    return f"""\
tigrislike {__version__} is ready
  endpoint  {ready.endpoint}
  region    {ready.region} (clients may sign for any region)

export AWS_ENDPOINT_URL={ready.endpoint}
export AWS_ACCESS_KEY_ID={ready.access_key_id}
export AWS_SECRET_ACCESS_KEY={secret}
export AWS_REGION=auto
"""


app.command("serve")(_with_settings(_serve))
