"""The S3 operations: one async function each, from the model's input to the model's output.

A function is registered under the operation's name in the S3 model; whatever the model holds and nobody registered is
answered with NotImplemented. Inputs and outputs are dictionaries whose keys are the model's member names: the protocol
compiler has checked and typed what comes in, and writes what goes out.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tigrislike.s3api.context import Context

Input = dict[str, Any]
# Beside the model's members, `Body` is what a read sends, `StatusCode` a status that is not the operation's own, and
# `Headers` are headers that S3's model lacks.
Output = dict[str, Any]
Handler = Callable[["Context", Input], Awaitable[Output]]

HANDLERS: dict[str, Handler] = {}


def operation(name: str) -> Callable[[Handler], Handler]:
    """Register the function that performs the operation `name` of the S3 model."""

    def register(handler: Handler) -> Handler:
        if name in HANDLERS:
            raise ValueError(f"operation {name} is registered twice")
        HANDLERS[name] = handler
        return handler

    return register


def load_operations() -> dict[str, Handler]:
    """Import every module of operations and return the functions by operation name."""
    for module in (
        "acceleration",
        "buckets",
        "copies",
        "inventories",
        "listing",
        "objects",
        "server_logging",
        "settings",
        "tagging",
        "uploads",
    ):
        import_module(f"{__name__}.{module}")
    return HANDLERS
