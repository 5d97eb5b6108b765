"""What to evict, one module per policy. `shelf.py` says what a policy is; `memory.py` simulates them."""

from typing import Final

from tigrislike.bytecache.policies.fifo import Fifo
from tigrislike.bytecache.policies.lru import Lru
from tigrislike.bytecache.policies.s3fifo import S3Fifo
from tigrislike.bytecache.policies.shelf import GHOST, MOST_SPARED, Entry, Key, Policy, Shelf
from tigrislike.bytecache.policies.sieve import Sieve

_POLICIES: Final[dict[str, Policy]] = {policy.name: policy for policy in (S3Fifo(), Fifo(), Lru(), Sieve())}

__all__ = ["DEFAULT", "GHOST", "MOST_SPARED", "Entry", "Key", "Policy", "Shelf", "named", "names"]

DEFAULT: Final = S3Fifo.name


def names() -> tuple[str, ...]:
    """Of all policies, the default first."""
    return tuple(_POLICIES)


def named(name: str) -> Policy:
    """The policy of that name.

    Raises:
        ValueError: There is none; the message lists those that there are.
    """
    try:
        return _POLICIES[name]
    except KeyError:
        raise ValueError(f"no eviction policy is called {name!r}; there are: {', '.join(_POLICIES)}") from None
