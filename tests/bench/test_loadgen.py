"""The load generator counts what is right as right and everything else as an error, and stops when told."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.loadgen import Check, LoadGenerator, Request, content, keys_hash, write_plan
from tests.bench.compiled import compiled_or_skip
from tests.bench.scripted_server import CLOSE, HANG, answer, serve

GET = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(scope="module")
def program() -> Path:
    return compiled_or_skip()


@pytest.fixture
def generator(program: Path, tmp_path: Path) -> Iterator[LoadGenerator]:
    return LoadGenerator(tmp_path, program)


def get(size: int, at: int = 0, **kwargs: int) -> Request:
    return Request(GET, check=Check.PATTERN, expect_at=at, expect_len=size, **kwargs)


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + end


BOUNDS = {"connections": 1, "seconds": 60.0, "timeout_s": 60.0}


def test_right_answers_are_successes_with_latencies(generator: LoadGenerator) -> None:
    with serve([answer(content(5, 3000))]) as server:
        result = generator.run(server.port, [get(3000, 5)], **BOUNDS, count=20, cycle=True)
    assert (result.issued, result.ok, result.errors) == (20, 20, 0)
    assert 0 < result.p50_us <= result.p99_us <= result.max_us * 1.02
    assert 0 < result.first_p50_us <= result.first_p99_us <= result.max_us * 1.02
    assert result.bytes_in > 20 * 3000
    assert result.client_cpu_s > 0
    assert server.connections == 1


def test_a_run_that_is_told_to_stop_reports_what_it_did(generator: LoadGenerator) -> None:
    with serve([answer(content(0, 10))]) as server:
        run = generator.start(server.port, [get(10)], connections=1, seconds=600, cycle=True)
        while not server.requests:
            pass
        result = run.stop()
    assert 0 < result.ok == result.issued
    assert result.errors == 0


def test_a_body_longer_than_the_pattern_is_verified_to_its_end(generator: LoadGenerator) -> None:
    size = 3 << 20
    with serve([answer(content(99, size)), answer(content(99, size - 1) + b"?")]) as server:
        result = generator.run(server.port, [get(size, 99)], **BOUNDS, count=2, cycle=True)
    assert (result.ok, result.failures["body"]) == (1, 1)


def test_request_bodies_arrive_as_planned(generator: LoadGenerator) -> None:
    size = (2 << 20) + 17
    put = Request(b"PUT / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size, body_at=7, body_len=size)
    with serve([answer()]) as server:
        result = generator.run(server.port, [put], **BOUNDS)
    assert result.ok == 1
    assert server.requests == [(put.head, content(7, size))]


@pytest.mark.parametrize(
    ("response", "failure"),
    [
        (answer(content(0, 100), "500 Internal Server Error"), "status"),
        (answer(content(0, 100), "404 Not Found"), "status"),
        (answer(content(0, 100), "206 Partial Content"), "status"),
        (answer(content(1, 100)), "body"),
        (answer(content(0, 99)), "body"),
        (answer(content(0, 101)), "body"),
        (answer(), "body"),
        (answer(content(0, 100)) + b"extra", "http"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + content(0, 100), "http"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "http"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n", "http"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "http"),
        (b"SSH-2.0-x\r\n\r\n", "http"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20000, "http"),
        (chunked(content(0, 100), end=b"zz\r\n\r\n"), "http"),
        (chunked(content(0, 100), end=b"5\r\n12345678\r\n"), "http"),
        (CLOSE, "closed"),
    ],
)
def test_a_wrong_answer_is_an_error_and_no_success(
    generator: LoadGenerator, response: bytes | None, failure: str
) -> None:
    with serve([response]) as server:
        result = generator.run(server.port, [get(100)], **BOUNDS, count=3, cycle=True)
    assert (result.ok, result.refused, result.errors) == (0, 0, 3)
    assert result.failures[failure] == 3
    assert result.samples[0].startswith(failure)
    assert result.p99_us == 0


def test_the_run_goes_on_after_an_error(generator: LoadGenerator) -> None:
    with serve([answer(content(0, 10)), CLOSE, answer(b"wrong")]) as server:
        result = generator.run(server.port, [get(10)], **BOUNDS, count=9, cycle=True)
    assert (result.ok, result.failures["closed"], result.failures["body"]) == (3, 3, 3)


def test_chunked_answers_are_read(generator: LoadGenerator) -> None:
    pieces = content(0, 40), content(40, 60)
    with serve([chunked(*pieces), chunked(*pieces, end=b"0;x=y\r\nTrailer: 1\r\n\r\n")]) as server:
        result = generator.run(server.port, [get(100)], **BOUNDS, count=4, cycle=True)
    assert (result.ok, result.errors, server.connections) == (4, 0, 1)


def test_an_interim_answer_is_passed_over(generator: LoadGenerator) -> None:
    with serve([b"HTTP/1.1 100 Continue\r\n\r\n" + answer(content(0, 10))]) as server:
        assert generator.run(server.port, [get(10)], **BOUNDS).ok == 1


def test_connection_close_is_honoured_and_no_error(generator: LoadGenerator) -> None:
    with serve([answer(content(0, 10), "200 OK", b"Connection: close")]) as server:
        result = generator.run(server.port, [get(10)], **BOUNDS, count=3, cycle=True)
    assert (result.ok, result.errors, server.connections) == (3, 0, 3)


def test_head_is_checked_by_its_length(generator: LoadGenerator) -> None:
    head = Request(b"HEAD / HTTP/1.1\r\n\r\n", check=Check.HEAD, expect_len=77)
    right, wrong = (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n for n in (77, 78))
    with serve([right, wrong]) as server:
        result = generator.run(server.port, [head], **BOUNDS, count=4, cycle=True)
    assert (result.ok, result.failures["body"]) == (2, 2)


def test_a_listing_is_checked_key_by_key(generator: LoadGenerator) -> None:
    keys = [f"k{i:04d}" for i in range(1000)]

    def listing(names: list[str]) -> bytes:
        return answer(b"<L><Prefix></Prefix>" + "".join(f"<C><Key>{k}</Key></C>" for k in names).encode() + b"</L>")

    page = Request(GET, check=Check.KEYS, expect_hash=keys_hash(keys), expect_count=1000)
    answers = [
        listing(keys),
        listing(keys[:-1]),
        listing([keys[1], keys[0], *keys[2:]]),
        listing([*keys, "z"]),
        answer(),
    ]
    with serve(answers) as server:
        result = generator.run(server.port, [page], **BOUNDS, count=5, cycle=True)
    assert (result.ok, result.failures["body"]) == (1, 4)


def test_common_prefixes_are_checked(generator: LoadGenerator) -> None:
    def listing(*names: str) -> bytes:
        rows = "".join(f"<CommonPrefixes><Prefix>{n}</Prefix></CommonPrefixes>" for n in names)
        return answer(b"<L><Prefix></Prefix>" + rows.encode() + b"</L>")

    page = Request(GET, check=Check.PREFIXES, expect_hash=keys_hash(["a/", "b/"]), expect_count=2)
    with serve([listing("a/", "b/"), listing("a/"), listing("b/", "a/")]) as server:
        result = generator.run(server.port, [page], **BOUNDS, count=3, cycle=True)
    assert (result.ok, result.failures["body"]) == (1, 2)


def test_an_allowed_refusal_is_neither_success_nor_error(generator: LoadGenerator) -> None:
    with serve([answer(content(0, 10)), answer(b"<Error/>", "503 Slow Down")]) as server:
        result = generator.run(server.port, [get(10, refused=503)], **BOUNDS, count=4, cycle=True)
    assert (result.ok, result.refused, result.errors) == (2, 2, 0)


def test_no_answer_is_an_error_in_bounded_time(generator: LoadGenerator) -> None:
    with serve([HANG]) as server:
        result = generator.run(server.port, [get(10)], connections=2, seconds=60, timeout_s=0.3, count=2, cycle=True)
    assert result.failures["timeout"] == 2
    assert result.elapsed_s < 30


def test_nobody_listening_is_an_error(generator: LoadGenerator) -> None:
    with serve([answer()]) as server:
        port = server.port
    result = generator.run(port, [get(10)], **BOUNDS, count=3, cycle=True)
    assert (result.ok, result.failures["connect"]) == (0, 3)


def test_errors_end_the_run_at_their_bound(generator: LoadGenerator) -> None:
    with serve([answer(b"wrong")]) as server:
        result = generator.run(server.port, [get(10)], **BOUNDS, cycle=True, max_errors=7)
    assert (result.issued, result.errors) == (7, 7)


def test_time_ends_the_run(generator: LoadGenerator) -> None:
    with serve([answer(content(0, 10))]) as server:
        result = generator.run(server.port, [get(10)], connections=4, seconds=0.2, cycle=True)
    assert result.ok == result.issued > 0
    assert 0.2 <= result.elapsed_s < 20


def test_a_plan_is_played_once_unless_told_to_cycle(generator: LoadGenerator) -> None:
    requests = [Request(b"GET /%d HTTP/1.1\r\n\r\n" % i) for i in range(50)]
    with serve([answer()]) as server:
        result = generator.run(server.port, requests, connections=8, seconds=60)
    assert result.ok == 50
    assert sorted(head for head, _ in server.requests) == sorted(r.head for r in requests)


def test_a_rate_is_kept_and_lateness_counts_as_latency(generator: LoadGenerator) -> None:
    with serve([answer(content(0, 10))]) as server:
        steady = generator.run(server.port, [get(10)], connections=4, seconds=60, rate=100, count=50, cycle=True)
    assert steady.ok == 50
    assert 0.49 <= steady.elapsed_s < 20  # the last is due then, and later only on a busy machine
    with serve([HANG, *[answer(content(0, 10))] * 99]) as server:
        stalled = generator.run(
            server.port, [get(10)], connections=1, seconds=60, rate=100, timeout_s=1.0, count=30, cycle=True
        )
    # The one connection was stuck for a second: the requests due meanwhile waited, and their latencies say so.
    assert stalled.failures["timeout"] == 1
    assert stalled.max_us > 900_000


def test_a_file_that_is_no_plan_is_refused(program: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    with whole.open("wb") as file:
        write_plan(file, [get(10)])
    cases = {"empty": b"", "text": b"not a plan at all, but long enough", "cut": whole.read_bytes()[:60]}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        command = [program, "--port", "9", "--plan", tmp_path / name, "--pattern", whole]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        assert done.returncode == 2, name
        assert "plan" in done.stderr or "cannot read" in done.stderr


def test_missing_bounds_are_refused(program: Path, tmp_path: Path) -> None:
    for arguments in ([], ["--port", "9", "--plan", "x", "--pattern", "y", "--seconds", "0"]):
        assert subprocess.run([program, *arguments], capture_output=True, timeout=10).returncode == 2


def test_a_generator_that_fails_raises(generator: LoadGenerator) -> None:
    with pytest.raises(RuntimeError, match="exited with 2"):
        generator.run(9, [get(10)], connections=0, seconds=1)


def test_without_a_compiler_what_needs_the_generator_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"^no C compiler: .* needs cc"):
        compiled_or_skip(tmp_path / "bin")
