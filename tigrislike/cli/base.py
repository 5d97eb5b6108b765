"""What commands have in common: the tree they hang on, flags made from settings, options, and how they fail."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tigrislike.config import ConfigError, Settings, load_settings, options, unknown_variables

if TYPE_CHECKING:
    from tigrislike.admin.commands import Command


app = typer.Typer(
    name="tigrislike",
    help="An S3-compatible, regional-first object store that runs beside the models it feeds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def group(name: str, text: str, *, alone: bool = False) -> typer.Typer:
    """A new group of commands; with `alone` its name is a command too."""
    made = typer.Typer(help=text, invoke_without_command=alone, no_args_is_help=not alone)
    app.add_typer(made, name=name)
    return made


def fail(message: str) -> NoReturn:
    """End with status 1 and one line that says why."""
    typer.echo(f"tigrislike: {message}", err=True)
    raise typer.Exit(1)


# What commands on a local store, other than the server itself, need to know.
STORE = ("data_dir", "metadata", "cache_dir", "master_key_file", "region", "block_size")
# What those need that look at no disk.
DATABASE = ("data_dir", "metadata", "master_key_file")
# And what those that fill and evict need beside: the same as the node's, or they keep more or less than it does.
CACHE = (*STORE, "reserve_bytes", "cache_bytes", "cache_policy", "fill_bytes", "fill_timeout_s", "scrub_rate")
# What commands that ask an origin themselves need beside the database.
EGRESS = (*DATABASE, "allow_private_origins")
ADDRESS = ("host", "port", "tls_cert", "tls_key")

ENDPOINT = Annotated[
    str | None,
    typer.Option(
        "--endpoint",
        help="Ask the node at this URL, with an admin key from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a "
        "profile; else use the database itself.",
        metavar="URL",
        show_default=False,
    ),
]
AS_JSON = Annotated[bool, typer.Option("--json", help="Print JSON: one document, or one object a line for lists.")]
BUCKET_NAME = Annotated[str, typer.Argument(help="Name of the bucket.", metavar="BUCKET")]
INTERVAL = Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)]
TIMES = Annotated[int | None, typer.Option(help="End after so many looks.", min=1, show_default=False)]


def _with_settings(command: Callable[..., None], only: tuple[str, ...]) -> Callable[..., None]:
    """Give a command one flag per setting, and call it with the resulting `Settings` as its first argument.

    The flags are made from `Settings`, so that each exists once: as a field, with its default and its help.
    With `only`, these settings have flags; the others still come from the environment and the settings file.
    """
    chosen = [option for option in options() if not option.secret and (not only or option.attribute in only)]
    own = inspect.signature(command, eval_str=True)
    parameters = [parameter for name, parameter in own.parameters.items() if name != "settings"]
    for option in chosen:
        help_text = f"{option.help} (Default: {option.shown}; environment: {option.variable}.)"
        if option.switch:
            annotation: Any = Annotated[
                bool | None, typer.Option(f"--{option.name}/--no-{option.name}", help=help_text, show_default=False)
            ]
        else:
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
        given = {option.attribute: values.pop(option.attribute) for option in chosen}
        flags = {name: None if value is None else str(value) for name, value in given.items()}
        file = values.pop("settings_file")
        try:
            settings = load_settings(flags, os.environ, file)
        except ConfigError as error:
            fail(str(error))
        for warning in unknown_variables(os.environ):
            typer.echo(f"tigrislike: warning: {warning}", err=True)
        command(settings, **values)

    run.__name__ = command.__name__
    run.__doc__ = command.__doc__
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def command(
    group: typer.Typer, name: str | None, only: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command of `group` that takes settings; without a name, what `group` does by itself."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        run = _with_settings(function, only)
        (group.callback() if name is None else group.command(name))(run)
        return function

    return add


def call_api(
    settings: Settings, endpoint: str | None, command: Callable[[ModuleType], Command], module: str
) -> NoReturn:
    """Carry out a command of `module` in the admin package, which is given to `command` once it is imported."""
    import importlib

    from tigrislike.admin.commands import CommandError, run

    try:
        status = run(settings, endpoint, command(importlib.import_module(f"tigrislike.admin.{module}")))
    except CommandError as error:
        fail(str(error))
    raise typer.Exit(status)


def stores(settings: Settings, endpoint: str | None, command: Callable[[ModuleType], Command]) -> NoReturn:
    """Carry out a command of `store_commands`."""
    call_api(settings, endpoint, command, "store_commands")


def ca_bundle() -> str | None:
    """The file of certificates to trust that AWS' tools go by too, if there is one."""
    return os.environ.get("AWS_CA_BUNDLE") or None
