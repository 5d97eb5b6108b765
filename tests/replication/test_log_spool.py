"""The spool of the log of requests: records are taken whole, once, whoever dies while he appends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tigrislike.replication.log_spool import Spool

BUCKET = bytes(range(16))
DAY = "2026-01-31"

APPENDING = """
import sys
from pathlib import Path
from tigrislike.replication.log_spool import Spool
spool = Spool(Path(sys.argv[1]), 1 << 40)
number = 0
while True:
    lines = b"".join(b"%s %d %s\\n" % (sys.argv[2].encode(), number + each, b"x" * 3000) for each in range(50))
    assert spool.append(bytes(range(16)), "2026-01-31", lines)
    number += 50
    print(number, flush=True)
"""


def drained(spool: Spool) -> list[bytes]:
    """The records of everything that is taken now; none of it is left behind."""
    for day in spool.growing(BUCKET):
        spool.take(BUCKET, day, 1)
    lines = []
    for taken in spool.taken(BUCKET):
        lines += taken.path.read_bytes().splitlines(keepends=True)
        taken.path.unlink()
    return lines


def test_what_is_appended_is_taken_once_and_then_a_new_file_begins(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", 1000)
    assert spool.buckets() == []
    spool.take(BUCKET, DAY, 1)  # there is nothing
    assert spool.append(BUCKET, DAY, b"one\n")
    assert spool.append(BUCKET, DAY, b"two\nthree\n")
    assert spool.append(BUCKET, "2026-02-01", b"tomorrow\n")
    (tmp_path / "spool" / "lost+found").mkdir()
    assert spool.buckets() == [BUCKET]
    assert spool.growing(BUCKET) == {DAY: 14, "2026-02-01": 9}
    spool.take(BUCKET, DAY, 7)
    (taken,) = spool.taken(BUCKET)
    assert (taken.bucket, taken.day, taken.at_ns) == (BUCKET, DAY, 7)
    assert spool.append(BUCKET, DAY, b"four\n")
    assert taken.path.read_bytes() == b"one\ntwo\nthree\n"
    assert sorted(drained(spool)) == sorted([b"four\n", b"one\n", b"three\n", b"tomorrow\n", b"two\n"])
    spool.tidy(BUCKET)
    assert spool.buckets() == []


def test_what_lies_there_of_a_bucket_is_bounded(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 20)
    assert spool.append(BUCKET, DAY, b"0123456789\n")
    spool.take(BUCKET, DAY, 1)
    assert not spool.append(BUCKET, DAY, b"0123456789\n"), "what was taken counts until it is delivered"
    assert spool.append(bytes(16), DAY, b"0123456789\n"), "another bucket has its own room"
    assert drained(spool) == [b"0123456789\n"]
    assert spool.append(BUCKET, DAY, b"0123456789\n")


def test_what_is_kept_free_of_the_disk_is_kept_free(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    size = disk.f_blocks * disk.f_frsize
    assert not Spool(tmp_path / "logs", 20, reserve_bytes=size).append(BUCKET, DAY, b"0123456789\n")
    assert Spool(tmp_path / "logs", 20, reserve_bytes=1).append(BUCKET, DAY, b"0123456789\n")


@given(st.binary(max_size=300).filter(lambda torn: b"\n" not in torn))
def test_a_record_that_was_cut_off_is_cut_out(tmp_path_factory: object, torn: bytes) -> None:
    spool_path = Path(tmp_path_factory.mktemp("spool"))  # type: ignore[attr-defined]
    spool = Spool(spool_path, 1000)
    spool.append(BUCKET, DAY, b"whole\n")
    file = spool_path / BUCKET.hex() / DAY
    with file.open("ab") as half:
        half.write(torn)
    spool.append(BUCKET, DAY, b"next\n")
    assert file.read_bytes() == b"whole\nnext\n"
    with file.open("ab") as half:
        half.write(torn)
    assert drained(spool) == [b"whole\n", b"next\n"]


def test_processes_append_and_are_killed_while_records_are_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 40)
    processes = [
        subprocess.Popen([sys.executable, "-c", APPENDING, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    said = dict.fromkeys("ab", 0)

    def listen(name: str, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as output:
            for line in output:
                said[name] = int(line)

    listeners = [threading.Thread(target=listen, args=each) for each in zip("ab", processes, strict=True)]
    for listener in listeners:
        listener.start()
    lines = []
    while min(said.values()) < 500:
        lines += drained(spool)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    for listener in listeners:
        listener.join()
    assert spool.append(BUCKET, DAY, b"after the death\n")
    lines += drained(spool)
    assert lines.pop() == b"after the death\n"
    for name in "ab":
        numbers = []
        for line in lines:
            writer, number, filling = line.split(b" ")
            assert filling == b"x" * 3000 + b"\n", "no record is torn, or mixed with another's"
            if writer == name.encode():
                numbers.append(int(number))
        assert numbers == list(range(len(numbers))), "none is missing, twice, or out of order"
        assert len(numbers) >= said[name], "what was appended before the death is there"
