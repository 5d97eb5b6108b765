"""The shared table of verified chunks: it may forget, and never invents."""

import multiprocessing
import os
import random
from multiprocessing.connection import Connection
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tigrislike.bytecache.verified import Identity, Verified, identity, tag_of

CHUNKS = 128


def _tag(number: int) -> bytes:
    return tag_of(bytes(16), number, (1, 2, 3, 4))


def test_what_was_added_is_there_and_grows() -> None:
    table = Verified()
    assert table.get(_tag(0)) == 0
    table.add(_tag(0), 0b101)
    table.add(_tag(0), 1 << (CHUNKS - 1))
    assert table.get(_tag(0)) == 0b101 | 1 << (CHUNKS - 1)
    table.forget(_tag(0))
    assert table.get(_tag(0)) == 0


@settings(max_examples=200, deadline=None)
@given(
    slots=st.integers(1, 4),
    story=st.lists(
        st.tuples(st.sampled_from(["add", "forget", "damage"]), st.integers(0, 7), st.integers(0, 2**CHUNKS - 1)),
        max_size=40,
    ),
)
def test_no_bit_is_ever_known_that_was_not_added(slots: int, story: list[tuple[str, int, int]]) -> None:
    """Eight files share up to four slots, whose bytes are also damaged at random."""
    table = Verified(slots)
    added = dict.fromkeys(range(8), 0)
    for what, number, value in story:
        if what == "add":
            table.add(_tag(number), value)
            added[number] |= value
            assert table.get(_tag(number)) & value == value
        elif what == "forget":
            table.forget(_tag(number))
            assert table.get(_tag(number)) == 0
        else:
            table._table[value % len(table._table)] ^= 1 + value % 255
        for other, bits in added.items():
            assert table.get(_tag(other)) & ~bits == 0


@settings(max_examples=100, deadline=None)
@given(
    one=st.tuples(*[st.integers(0, 2**62)] * 4),
    other=st.tuples(*[st.integers(0, 2**62)] * 4),
    number=st.integers(0, 2**32 - 1),
)
def test_another_file_under_the_same_name_has_another_tag(one: Identity, other: Identity, number: int) -> None:
    blob_id = bytes(range(16))
    assert (tag_of(blob_id, number, one) == tag_of(blob_id, number, other)) == (one == other)
    assert tag_of(blob_id, number, one) != tag_of(blob_id[::-1], number, one)
    assert tag_of(blob_id, number, one) != tag_of(blob_id, number ^ 1, one)


def test_times_that_are_set_back_do_not_hide_a_change(tmp_path: Path) -> None:
    file = tmp_path / "block"
    file.write_bytes(b"as it was")
    before = file.stat()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    changed = file.stat()
    file.write_bytes(b"as it is!")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert identity(file.stat()) != identity(changed)


def _hammer(table: Verified, seed: int, done: Connection) -> None:
    source = random.Random(seed)
    wrong = 0
    for _ in range(20_000):
        number = source.randrange(4)
        # Of file n only bits that are n modulo four are ever added.
        table.add(_tag(number), 1 << (4 * source.randrange(CHUNKS // 4) + number))
        for other in range(4):
            allowed = sum(1 << bit for bit in range(other, CHUNKS, 4))
            wrong += bool(table.get(_tag(other)) & ~allowed)
    done.send(wrong)


def test_processes_that_tear_each_others_slots_never_read_what_nobody_wrote() -> None:
    """Three forked processes add to four files that share two slots, as fast as they can."""
    table = Verified.shared(2)
    context = multiprocessing.get_context("fork")
    children = []
    for seed in range(3):
        mine, its = context.Pipe(duplex=False)
        process = context.Process(target=_hammer, args=(table, seed, its))
        process.start()
        its.close()
        children.append((process, mine))
    for process, mine in children:
        assert mine.recv() == 0
        process.join()
        assert process.exitcode == 0
