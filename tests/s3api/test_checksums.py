"""Checksums: known answers, streaming, header rules, and the arithmetic of multipart uploads."""

import base64
import hashlib
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise

import botocore.session
import pytest
from awscrt import checksums as crt
from hypothesis import given, settings
from hypothesis import strategies as st

from tigrislike.s3api import checksums
from tigrislike.s3api.checksums import ALGORITHMS, HEADERS, MEMBERS, Digests
from tigrislike.s3api.errors import S3Error

# Check values of the CRC catalogue and of each algorithm's specification, over the nine digits.
CHECK = {
    "CRC32": "cbf43926",
    "CRC32C": "e3069283",
    "CRC64NVME": "ae8b14860a799888",
    "SHA1": hashlib.sha1(b"123456789").hexdigest(),
    "SHA256": hashlib.sha256(b"123456789").hexdigest(),
    "SHA512": hashlib.sha512(b"123456789").hexdigest(),
    "MD5": "25f9e794323b453885f5181f1b624d0b",
    "XXHASH64": "8cb841db40e6ae83",
    # As awscrt computes them for AWS's own SDKs.
    "XXHASH3": crt.XXHash.compute_xxhash3_64(b"123456789").hex(),
    "XXHASH128": crt.XXHash.compute_xxhash3_128(b"123456789").hex(),
}
CRCS = ["CRC32", "CRC32C", "CRC64NVME"]


def base64_of(algorithm: str, data: bytes) -> str:
    digests = Digests([algorithm])
    digests.update(data)
    return digests.base64(algorithm)


def refusal(attempt: Callable[[], object]) -> S3Error:
    with pytest.raises(S3Error) as caught:
        attempt()
    return caught.value


def test_the_algorithms_are_those_of_the_service_model() -> None:
    model = botocore.session.get_session().get_service_model("s3")
    assert set(ALGORITHMS) >= set(model.shape_for("ChecksumAlgorithm").enum)
    put = model.shape_for("PutObjectRequest").members
    for name, member in put.items():
        if name.startswith("Checksum") and name != "ChecksumAlgorithm":
            assert HEADERS[member.serialization["name"]] == MEMBERS[name]
    assert {algorithm.member for algorithm in ALGORITHMS.values()} == set(MEMBERS)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_known_answers(algorithm: str) -> None:
    digests = Digests([algorithm])
    digests.update(b"123456789")
    assert digests.hex(algorithm) == CHECK[algorithm]
    assert digests.digest(algorithm) == bytes.fromhex(CHECK[algorithm])
    assert base64.b64decode(digests.base64(algorithm)) == bytes.fromhex(CHECK[algorithm])
    assert len(digests.digest(algorithm)) == ALGORITHMS[algorithm].size_bytes


@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=5))
@settings(deadline=None)
def test_pieces_of_any_size_and_type_make_the_same_digests(data: bytes, cuts: list[int]) -> None:
    whole, pieces = Digests(ALGORITHMS), Digests(ALGORITHMS)
    whole.update(data)
    bounds = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    kinds: list[Callable[[bytes], bytes | bytearray | memoryview]] = [bytes, bytearray, memoryview]
    for index, (start, stop) in enumerate(pairwise(bounds)):
        pieces.update(kinds[index % 3](data[start:stop]))
    assert [whole.hex(name) for name in ALGORITHMS] == [pieces.hex(name) for name in ALGORITHMS]
    assert whole.digest("CRC32") == zlib.crc32(data).to_bytes(4, "big")


def test_reading_a_digest_does_not_end_the_stream() -> None:
    digests = Digests(["MD5", "CRC32"])
    digests.update(b"1234")
    digests.hex("MD5")
    digests.update(b"56789")
    assert digests.hex("MD5") == CHECK["MD5"]
    assert "MD5" in digests
    assert "SHA1" not in digests


@pytest.mark.parametrize("algorithm", ["", "MD4", "crc32"])
def test_an_unknown_algorithm_is_a_mistake_of_the_caller(algorithm: str) -> None:
    with pytest.raises(KeyError):
        Digests([algorithm])
    with pytest.raises(KeyError):
        Digests(["MD5"]).hex("SHA1")


@pytest.fixture
def no_forced_switches() -> Iterator[None]:
    """Threads change places only where one lets go of the GIL of its own accord."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.usefixtures("no_forced_switches")
def test_other_threads_run_while_a_large_buffer_is_hashed(algorithm: str) -> None:
    digests, data = Digests([algorithm]), bytes(8 << 20)
    running, seen_at_it = threading.Event(), threading.Event()
    steps = 0

    def hash_all() -> None:
        nonlocal steps
        running.set()
        for _ in range(2000):  # a busy machine may take its time to let the other thread run
            steps += 1
            digests.update(data)
            steps += 1
            if seen_at_it.is_set():
                return

    thread = threading.Thread(target=hash_all)
    thread.start()
    running.wait()
    seen = steps
    seen_at_it.set()
    thread.join()
    assert seen % 2 == 1, "this thread ran only before or after all the hashing"


# --- headers ---------------------------------------------------------------------------------------------------------


def test_nothing_declared() -> None:
    declared = checksums.declared({"host": "h", "x-amz-checksum-mode": "ENABLED", "x-amz-checksum-type": "COMPOSITE"})
    assert (declared.algorithm, declared.expected, declared.trailer) == ("", {}, "")


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_checksum_in_a_header(algorithm: str) -> None:
    value = base64_of(algorithm, b"data")
    declared = checksums.declared(
        {ALGORITHMS[algorithm].header: value, "x-amz-sdk-checksum-algorithm": algorithm.lower()}
    )
    assert (declared.algorithm, declared.expected, declared.trailer) == (algorithm, {algorithm: value}, "")


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_a_value_of_the_wrong_shape(algorithm: str) -> None:
    header, size = ALGORITHMS[algorithm].header, ALGORITHMS[algorithm].size_bytes
    good = base64_of(algorithm, b"data")
    values = ["", "!" * len(good), good[:-1], good + "=", good[:4] + "\n" + good[4:], "é" * len(good)]
    values += [base64.b64encode(bytes(wrong)).decode() for wrong in (size - 1, size + 1, size + 3)]
    for value in values:
        error = refusal(lambda value=value: checksums.declared({header: value}))
        assert (error.code, error.message) == ("InvalidRequest", f"Value for {header} header is invalid.")


def test_one_digest_has_one_spelling() -> None:
    # The last character's low bits are padding: "y/Q5Jg==" and "y/Q5Jh==" decode to the same bytes.
    assert base64.b64decode("y/Q5Jg==") == base64.b64decode("y/Q5Jh==")
    assert checksums.check_value("CRC32", " y/Q5Jg== ") == "y/Q5Jg=="
    assert refusal(lambda: checksums.check_value("CRC32", "y/Q5Jh==")).code == "InvalidRequest"


def test_more_than_one_checksum() -> None:
    one = {"x-amz-checksum-crc32": "y/Q5Jg=="}
    trailer = {"x-amz-trailer": "x-amz-checksum-crc32c", "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER"}
    both = trailer | {"x-amz-trailer": "x-amz-checksum-crc32c, x-amz-checksum-sha1"}
    for headers in (one | {"x-amz-checksum-crc32c": "4waSgw=="}, one | trailer, both):
        error = refusal(lambda headers=headers: checksums.declared(headers))
        assert error.code == "InvalidRequest"
        assert error.message.startswith("Expecting a single x-amz-checksum- header.")


@pytest.mark.parametrize("name", ["x-amz-checksum-crc16", "x-amz-checksum-"])
def test_an_unknown_checksum_header_is_not_ignored(name: str) -> None:
    error = refusal(lambda: checksums.declared({name: "AAA="}))
    assert error.code == "InvalidRequest"
    assert error.message.startswith("Checksum algorithm provided is unsupported.")


@pytest.mark.parametrize("mode", ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"])
def test_a_checksum_to_come_in_the_trailer(mode: str) -> None:
    declared = checksums.declared(
        {
            "x-amz-trailer": "X-Amz-Checksum-CRC64NVME",
            "x-amz-content-sha256": mode,
            "x-amz-sdk-checksum-algorithm": "CRC64NVME",
        }
    )
    assert (declared.algorithm, declared.expected, declared.trailer) == ("CRC64NVME", {}, "CRC64NVME")


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"x-amz-trailer": "x-amz-meta-a"}, "The value specified in the x-amz-trailer header is not supported"),
        ({"x-amz-trailer": "x-amz-checksum-crc32", "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, "x-amz-trailer is"),
        ({"x-amz-trailer": "x-amz-checksum-crc32"}, "x-amz-trailer is"),
        ({"x-amz-sdk-checksum-algorithm": "CRC32"}, "x-amz-sdk-checksum-algorithm specified, but no corresponding"),
        ({"x-amz-sdk-checksum-algorithm": "MD4"}, "Checksum algorithm provided is unsupported."),
        (
            {"x-amz-sdk-checksum-algorithm": "CRC32C", "x-amz-checksum-crc32": "y/Q5Jg=="},
            "Value for x-amz-sdk-checksum-algorithm header is invalid.",
        ),
    ],
)
def test_contradictions(headers: dict[str, str], message: str) -> None:
    error = refusal(lambda: checksums.declared(headers))
    assert (error.code, error.status) == ("InvalidRequest", 400)
    assert error.message.startswith(message)


def test_an_empty_trailer_header_announces_nothing() -> None:
    assert checksums.declared({"x-amz-trailer": ""}).trailer == ""


def test_content_md5() -> None:
    value = base64.b64encode(hashlib.md5(b"data").digest()).decode()
    declared = checksums.declared({"content-md5": value})
    assert (declared.algorithm, declared.expected) == ("", {"MD5": value})
    declared = checksums.declared({"content-md5": value, "x-amz-checksum-crc32": "y/Q5Jg=="})
    assert declared.expected == {"CRC32": "y/Q5Jg==", "MD5": value}
    declared = checksums.declared({"content-md5": value, "x-amz-checksum-md5": value})
    assert (declared.algorithm, declared.expected) == ("MD5", {"MD5": value})


@pytest.mark.parametrize("value", ["", "abc", "AAAA", "YWJj" * 6, hashlib.md5(b"").hexdigest()])
def test_a_content_md5_that_is_none(value: str) -> None:
    error = refusal(lambda: checksums.declared({"content-md5": value}))
    assert (error.code, error.status) == ("InvalidDigest", 400)


def test_two_md5s_that_differ_cannot_both_match() -> None:
    one, other = (base64.b64encode(hashlib.md5(data).digest()).decode() for data in (b"1", b"2"))
    assert refusal(lambda: checksums.declared({"content-md5": one, "x-amz-checksum-md5": other})).code == "BadDigest"


# --- multipart -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "default", "other"),
    [
        ("CRC32", "COMPOSITE", "FULL_OBJECT"),
        ("CRC32C", "COMPOSITE", "FULL_OBJECT"),
        ("CRC64NVME", "FULL_OBJECT", None),
        ("SHA1", "COMPOSITE", None),
        ("SHA256", "COMPOSITE", None),
        ("SHA512", "COMPOSITE", None),
        ("MD5", "COMPOSITE", None),
        ("XXHASH64", "COMPOSITE", None),
        ("XXHASH3", "COMPOSITE", None),
        ("XXHASH128", "COMPOSITE", None),
    ],
)
def test_types_of_a_multipart_checksum(algorithm: str, default: str, other: str | None) -> None:
    assert checksums.multipart_type(algorithm, None) == default
    assert checksums.multipart_type(algorithm, default) == default
    if other:
        assert checksums.multipart_type(algorithm, other) == other
    else:
        forbidden = ({"COMPOSITE", "FULL_OBJECT"} - {default}).pop()
        error = refusal(lambda: checksums.multipart_type(algorithm, forbidden))
        assert error.message == (
            f"The {forbidden} checksum type cannot be used with the {algorithm.lower()} checksum algorithm."
        )


def test_types_without_sense() -> None:
    assert checksums.multipart_type("", None) == ""
    assert refusal(lambda: checksums.multipart_type("", "COMPOSITE")).code == "InvalidRequest"
    assert refusal(lambda: checksums.multipart_type("MD4", None)).code == "InvalidRequest"
    assert refusal(lambda: checksums.multipart_type("CRC32", "HALF")).code == "InvalidRequest"


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_composite_is_the_checksum_of_the_checksums(algorithm: str) -> None:
    parts = [b"one", b"two", b""]
    joined = b"".join(base64.b64decode(base64_of(algorithm, part)) for part in parts)
    values = [base64_of(algorithm, part) for part in parts]
    assert checksums.composite(algorithm, values) == f"{base64_of(algorithm, joined)}-3"


def test_composite_of_sha256_written_out() -> None:
    parts = [hashlib.sha256(part).digest() for part in (b"a" * 10, b"b")]
    expected = base64.b64encode(hashlib.sha256(parts[0] + parts[1]).digest()).decode() + "-2"
    assert checksums.composite("SHA256", [base64.b64encode(part).decode() for part in parts]) == expected


@pytest.mark.parametrize("algorithm", CRCS)
@given(parts=st.lists(st.binary(max_size=300), max_size=6))
@settings(deadline=None)
def test_combined_crcs_are_the_crc_of_the_whole(algorithm: str, parts: list[bytes]) -> None:
    combined = checksums.combine(algorithm, [(base64_of(algorithm, part), len(part)) for part in parts])
    assert combined == base64_of(algorithm, b"".join(parts))


@pytest.mark.parametrize("algorithm", CRCS)
@given(values=st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.integers(0, 5 << 40)), min_size=1, max_size=4))
@settings(deadline=None)
def test_combining_agrees_with_awscrt_at_any_size(algorithm: str, values: list[tuple[bytes, int]]) -> None:
    size_bytes = ALGORITHMS[algorithm].size_bytes
    one_more = {"CRC32": crt.combine_crc32, "CRC32C": crt.combine_crc32c, "CRC64NVME": crt.combine_crc64nvme}[algorithm]
    # An empty part has the CRC of nothing; any other value for it would be no CRC at all.
    parts = [((value if size else bytes(8))[:size_bytes], size) for value, size in values]
    whole = 0
    for value, size in parts:
        whole = one_more(whole, int.from_bytes(value, "big"), size)
    encoded = [(base64.b64encode(value).decode(), size) for value, size in parts]
    assert checksums.combine(algorithm, encoded) == base64.b64encode(whole.to_bytes(size_bytes, "big")).decode()


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - set(CRCS)))
def test_no_other_checksum_combines(algorithm: str) -> None:
    with pytest.raises(KeyError):
        checksums.combine(algorithm, [(base64_of(algorithm, b""), 0)])


@given(
    headers=st.dictionaries(
        st.sampled_from([*HEADERS, "content-md5", "x-amz-trailer", "x-amz-sdk-checksum-algorithm", "x-amz-checksum-x"]),
        st.text(max_size=12) | st.sampled_from(["y/Q5Jg==", "x-amz-checksum-crc32", "CRC32"]),
        max_size=3,
    )
)
@settings(deadline=None)
def test_garbage_only_ever_raises_s3_errors(headers: dict[str, str]) -> None:
    with suppress(S3Error):
        checksums.declared(headers)
