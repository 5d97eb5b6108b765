"""Network namespaces of Linux: a region's processes in a network of their own, where every address is the link's.

Clients of FoundationDB connect to the addresses that its processes announce, so that nothing can be put in between by
telling them another one. In a namespace such an address is nobody's yet, and the link can listen on it.

To make them takes the rights of root, or of who is root in a user namespace (`unshare --map-root-user COMMAND`).
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_CLONE_NEWNET: Final = 0x40000000
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1


class Namespace:
    """A new network, of 127.0.0.0/8 alone. It lasts until it is closed and the processes in it have ended.

    Raises:
        PermissionError: this process may not make one.
    """

    def __init__(self) -> None:
        with ThreadPoolExecutor(1) as thread:  # a thread has a network of its own: this one's end leaves no trace
            self._fd = thread.submit(_make).result()

    @property
    def path(self) -> Path:
        """The file by which other processes enter it, while this one runs."""
        return Path(f"/proc/{os.getpid()}/fd/{self._fd}")

    @property
    def command(self) -> list[str]:
        """What, before a command, runs it there."""
        return ["nsenter", f"--net={self.path}", "--"]

    def close(self) -> None:
        os.close(self._fd)


class Sockets:
    """Makes sockets in the namespace at `path`, for use anywhere: a socket stays in the network of who made it.

    Raises:
        OSError: there is no such namespace, or it may not be entered.
    """

    def __init__(self, path: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"sockets in {path}")
        try:
            self._thread.submit(_enter, path).result()
        except BaseException:
            self.close()
            raise

    async def make(self) -> socket.socket:
        return await asyncio.get_running_loop().run_in_executor(self._thread, socket.socket)

    def close(self) -> None:
        self._thread.shutdown(wait=False)


def _make() -> int:
    _call("unshare", _CLONE_NEWNET)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY)


def _enter(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _call("setns", descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


def _call(name: str, *arguments: int) -> None:
    # Python has these since 3.12.
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
