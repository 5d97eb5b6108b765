"""Epochs: a request is accepted once by all processes together, in its epoch and the next, and never later."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.server.wire import run
from tigrislike.replication import epochs as module
from tigrislike.replication.epochs import Epochs
from tigrislike.replication.signing import WINDOW, Refused, Replayed, TableFull, UnknownEpoch

SENDER = b"sender.1"


def on_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def running(**fixtures: Any) -> None:
        run(test(**fixtures))

    return running


async def accepted(epochs: Epochs, epoch: bytes, sender: bytes, counter: int) -> bool:
    try:
        await epochs.accept(epoch, sender, counter)
    except Replayed:
        return False
    return True


def in_process(work: Callable[[int], None]) -> bytes:
    """What `work(descriptor)` writes, in a forked process."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(writer)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as output:
        data = output.read()
    assert os.waitpid(pid, 0)[1] == 0
    return data


def test_a_request_is_accepted_once_whichever_process_it_reaches() -> None:
    epochs = Epochs()

    def work(output: int) -> None:
        async def all_of_them() -> bytes:
            return bytes([await accepted(epochs, epochs.current, SENDER, n) for n in range(1, 901)])

        os.write(output, asyncio.run(all_of_them()))

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(in_process, [work] * 4))
    assert [sum(column) for column in zip(*outcomes, strict=True)] == [1] * 900


def test_senders_that_come_at_once_to_several_processes_get_one_window_each() -> None:
    epochs = Epochs(300)
    senders = [os.urandom(8) for _ in range(300)]

    def work(output: int) -> None:
        async def all_of_them() -> bytes:
            return bytes([await accepted(epochs, epochs.current, sender, 1) for sender in senders])

        os.write(output, asyncio.run(all_of_them()))

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(in_process, [work] * 4))
    assert [sum(column) for column in zip(*outcomes, strict=True)] == [1] * 300


@on_a_loop
async def test_an_epoch_is_accepted_until_the_second_after_it() -> None:
    epochs = Epochs()
    first = epochs.current
    assert not epochs.previous
    await epochs.accept(first, SENDER, 1)
    await epochs.renew()
    second = epochs.current
    assert second != first
    assert epochs.previous == first
    with pytest.raises(Replayed):
        await epochs.accept(first, SENDER, 1)
    await epochs.accept(first, SENDER, 2)
    await epochs.accept(second, SENDER, 1)
    await epochs.renew()
    with pytest.raises(UnknownEpoch):
        await epochs.accept(first, SENDER, 3)
    with pytest.raises(Replayed):
        await epochs.accept(second, SENDER, 1)


@on_a_loop
async def test_no_epoch_is_none() -> None:
    with pytest.raises(UnknownEpoch):
        await Epochs().accept(bytes(8), SENDER, 1)


@on_a_loop
async def test_what_is_behind_the_window_is_refused() -> None:
    epochs = Epochs()
    await epochs.accept(epochs.current, SENDER, WINDOW + 1)
    await epochs.accept(epochs.current, SENDER, 2)
    for counter in (1, 2, WINDOW + 1):
        with pytest.raises(Replayed):
            await epochs.accept(epochs.current, SENDER, counter)


@on_a_loop
async def test_a_full_table_refuses_new_senders_and_forgets_none() -> None:
    epochs = Epochs(20)
    senders = [os.urandom(8) for _ in range(21)]
    for sender in senders[:20]:
        await epochs.accept(epochs.current, sender, 1)
    with pytest.raises(TableFull):
        await epochs.accept(epochs.current, senders[20], 1)
    for sender in senders[:20]:
        with pytest.raises(Replayed):
            await epochs.accept(epochs.current, sender, 1)
        await epochs.accept(epochs.current, sender, 2)
    await epochs.renew()
    await epochs.accept(epochs.current, senders[20], 1)


@contextlib.contextmanager
def locked_by_another(epochs: Epochs) -> Iterator[None]:
    """A process that keeps both locks until it is killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.lockf(epochs._fd, fcntl.LOCK_EX, 2, 0)
        os.write(writer, b"+")
        signal.pause()
    os.close(writer)
    assert os.read(reader, 1) == b"+"
    os.close(reader)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@on_a_loop
async def test_a_neighbour_that_keeps_the_lock_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_GIVE_UP_S", 0.02)
    epochs = Epochs()
    with locked_by_another(epochs):
        for doing in (epochs.accept(epochs.current, SENDER, 1), epochs.renew()):
            with pytest.raises(TableFull, match="locked"):
                await doing
    await epochs.accept(epochs.current, SENDER, 1)  # the kernel has let go of the lock


@on_a_loop
async def test_an_epoch_that_ends_while_the_lock_is_waited_for_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = Epochs()
    ending = epochs.current
    await epochs.renew()
    half = epochs._half_of(ending)
    await epochs.renew()
    monkeypatch.setattr(epochs, "_half_of", lambda epoch: half)
    with pytest.raises(Refused, match="just ended"):
        await epochs.accept(ending, SENDER, 1)
