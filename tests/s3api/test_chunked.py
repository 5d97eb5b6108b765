"""aws-chunked bodies: AWS's examples, botocore's encoder, every way to tamper with one, and every way to cut one up."""

import hashlib
import io
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import pairwise

import pytest
from botocore.compat import HAS_CRT
from botocore.httpchecksum import AwsChunkedWrapper, CrtCrc32cChecksum
from hypothesis import given, settings
from hypothesis import strategies as st

from tigrislike.s3api import chunked, sigv4
from tigrislike.s3api.checksums import Digests
from tigrislike.s3api.chunked import ChunkedDecoder
from tigrislike.s3api.errors import S3Error
from tigrislike.s3api.sigv4 import Payload, SigningKey, Verified

KEY_ID, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
TIMESTAMP, SCOPE = "20130524T000000Z", "20130524/us-east-1/s3/aws4_request"
SIGNING_KEY: SigningKey = sigv4.signing_key(SECRET, "20130524", "us-east-1", "s3")
EMPTY = hashlib.sha256(b"").hexdigest()


def verified(payload: Payload, seed: str = "0" * 64) -> Verified:
    return Verified(
        KEY_ID, payload, "", seed, SIGNING_KEY, TIMESTAMP, SCOPE, "us-east-1", presigned=False, security_token=""
    )


def encode_signed(data: bytes, sizes: Iterable[int], trailers: bytes | None = None, seed: str = "0" * 64) -> bytes:
    """A body as S3's documentation describes it: chunks of these sizes, the rest, the empty chunk, the trailer."""
    pieces, position, previous = [], 0, seed
    bounds = [*sizes, len(data)]
    chunks = []
    for size in bounds:
        if position < len(data):
            chunks.append(data[position : position + size])
            position += size
    for chunk in [*chunks, b""]:
        digest = hashlib.sha256(chunk).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256-PAYLOAD\n{TIMESTAMP}\n{SCOPE}\n{previous}\n{EMPTY}\n{digest}"
        previous = SIGNING_KEY.sign(to_sign.encode())
        pieces.append(b"%x;chunk-signature=%b\r\n" % (len(chunk), previous.encode()) + (chunk and chunk + b"\r\n"))
    if trailers is not None:
        digest = hashlib.sha256(trailers).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256-TRAILER\n{TIMESTAMP}\n{SCOPE}\n{previous}\n{digest}"
        pieces.append(trailers.replace(b"\n", b"\r\n"))
        pieces.append(b"x-amz-trailer-signature:%b\r\n" % SIGNING_KEY.sign(to_sign.encode()).encode())
    return b"".join([*pieces, b"\r\n"])


def encode_unsigned(data: bytes, sizes: Iterable[int], trailers: bytes = b"") -> bytes:
    pieces, position = [], 0
    for size in [*sizes, len(data)]:
        chunk = data[position : position + size]
        if chunk:
            pieces.append(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            position += size
    return b"".join([*pieces, b"0\r\n", trailers, b"\r\n"])


def decode(decoder: ChunkedDecoder, body: bytes, cuts: Iterable[int] = ()) -> bytes:
    bounds = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    out = b"".join(bytes(piece) for start, stop in pairwise(bounds) for piece in decoder.feed(body[start:stop]))
    decoder.finish()
    return out


def refusal(attempt: Callable[[], object]) -> S3Error:
    with pytest.raises(S3Error) as caught:
        attempt()
    return caught.value


def signed_decoder(length: int) -> ChunkedDecoder:
    return ChunkedDecoder.for_request(verified(Payload.STREAMING_SIGNED), decoded_length=length)


def trailer_decoder(length: int, trailer: str = "x-amz-checksum-crc32") -> ChunkedDecoder:
    return ChunkedDecoder.for_request(
        verified(Payload.STREAMING_SIGNED_TRAILER), decoded_length=length, trailer=trailer
    )


def unsigned_decoder(length: int, trailer: str = "") -> ChunkedDecoder:
    return ChunkedDecoder.for_request(
        verified(Payload.STREAMING_UNSIGNED_TRAILER), decoded_length=length, trailer=trailer
    )


# --- AWS's examples: "Transferring Payload in Multiple Chunks", without and with a trailer ----------------------------

EXAMPLE = b"a" * 66560


def example_body(signatures: list[str], end: bytes) -> bytes:
    first, second, last = (signature.encode() for signature in signatures)
    return (
        b"10000;chunk-signature=" + first + b"\r\n" + b"a" * 65536 + b"\r\n"
        b"400;chunk-signature=" + second + b"\r\n" + b"a" * 1024 + b"\r\n"
        b"0;chunk-signature=" + last + b"\r\n" + end
    )


SIGNED_EXAMPLE = example_body(
    [
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ],
    b"\r\n",
)
SIGNED_SEED = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
TRAILER_SIGNATURES = [
    "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
    "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
    "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
]
TRAILER_SEED = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
TRAILER_SIGNATURE = b"d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"


def test_example_signed_chunks() -> None:
    signer = verified(Payload.STREAMING_SIGNED, SIGNED_SEED)
    decoder = ChunkedDecoder.for_request(signer, decoded_length=66560)
    assert decode(decoder, SIGNED_EXAMPLE, range(0, 70000, 1000)) == EXAMPLE
    assert decoder.trailers == {}


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\n\r\n"])
def test_example_signed_chunks_with_a_trailer(line_end: bytes) -> None:
    # The documentation's own text ends the trailer's line with "\n\r\n"; SDKs send "\r\n".
    end = b"x-amz-checksum-crc32c:sOO8/Q==" + line_end + b"x-amz-trailer-signature:" + TRAILER_SIGNATURE + b"\r\n\r\n"
    signer = verified(Payload.STREAMING_SIGNED_TRAILER, TRAILER_SEED)
    decoder = ChunkedDecoder.for_request(signer, decoded_length=66560, trailer="x-amz-checksum-crc32c")
    assert decode(decoder, example_body(TRAILER_SIGNATURES, end)) == EXAMPLE
    digests = Digests(["CRC32C"])
    digests.update(EXAMPLE)
    assert decoder.trailers == {"x-amz-checksum-crc32c": "sOO8/Q=="}
    assert digests.base64("CRC32C") == "sOO8/Q=="


@pytest.mark.skipif(not HAS_CRT, reason="botocore finds no awscrt")
@pytest.mark.parametrize("size", [0, 1, 10_000, 30_000])
def test_what_botocore_encodes_is_decoded(size: int) -> None:
    data = bytes(range(256)) * 120
    body = AwsChunkedWrapper(
        io.BytesIO(data[:size]), checksum_cls=CrtCrc32cChecksum, checksum_name="x-amz-checksum-crc32c", chunk_size=8192
    ).read()
    decoder = unsigned_decoder(size, "x-amz-checksum-crc32c")
    assert decode(decoder, body, [5, 6, 15_000]) == data[:size]
    digests = Digests(["CRC32C"])
    digests.update(data[:size])
    assert decoder.trailers == {"x-amz-checksum-crc32c": digests.base64("CRC32C")}


DATA = b"hello" * 1640 + b"world"
WHOLE = encode_signed(DATA, [8200], b"x-amz-checksum-crc32:AAAAAA==\n")


# --- cutting ---------------------------------------------------------------------------------------------------------

sizes = st.lists(st.integers(8192, 8200), max_size=5)
cuts = st.lists(st.integers(0, 1200) | st.integers(0, 45_000), max_size=30)


@given(data=st.binary(max_size=200).map(lambda data: data * 200), sizes=sizes, cuts=cuts)
@settings(max_examples=150, deadline=None)
def test_a_body_decodes_the_same_however_it_is_cut(data: bytes, sizes: list[int], cuts: list[int]) -> None:
    assert decode(signed_decoder(len(data)), encode_signed(data, sizes), cuts) == data
    trailer = b"x-amz-checksum-crc32:AAAAAA==\n"
    for decoder, body in (
        (trailer_decoder(len(data)), encode_signed(data, sizes, trailer)),
        (unsigned_decoder(len(data), "X-Amz-Checksum-CRC32"), encode_unsigned(data, sizes, trailer[:-1] + b"\r\n")),
    ):
        assert decode(decoder, body, cuts) == data
        assert decoder.trailers == {"x-amz-checksum-crc32": "AAAAAA=="}
        assert decoder.received == len(data)


def test_byte_by_byte() -> None:
    assert decode(trailer_decoder(len(DATA)), WHOLE, range(len(WHOLE))) == DATA


def test_nothing_is_copied() -> None:
    decoder = unsigned_decoder(10)
    (piece,) = decoder.feed(b"a\r\n12345")
    assert isinstance(piece, memoryview)
    whole = b"6789"
    assert decoder.feed(whole)[0] is whole


def test_memory_is_bounded_by_the_longest_line() -> None:
    decoder = unsigned_decoder(10)
    error = refusal(lambda: [decoder.feed(b"0" * 100) for _ in range(100)])
    assert (error.code, error.status) == ("InvalidRequest", 400)
    assert "longer than 512 bytes" in error.message


# --- tampering -------------------------------------------------------------------------------------------------------

FIRST = WHOLE.index(b"hello")


@given(position=st.integers(0, FIRST) | st.integers(FIRST + 8200, len(WHOLE) - 1), byte=st.integers(0, 255), cuts=cuts)
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_never_accepted_as_other_data(position: int, byte: int, cuts: list[int]) -> None:
    body = WHOLE[:position] + bytes((byte,)) + WHOLE[position + 1 :]
    decoder = trailer_decoder(len(DATA))
    try:
        data = decode(decoder, body, cuts)
    except S3Error:
        return
    # What the signatures do not cover (the case of a name, a line's end) may change; what they promise may not.
    assert data == DATA
    assert decoder.trailers == {"x-amz-checksum-crc32": "AAAAAA=="}


def test_a_tampered_chunk_explains_itself() -> None:
    body = encode_signed(DATA, [8200]).replace(b"hello", b"jello", 1)
    error = refusal(lambda: decode(signed_decoder(len(DATA)), body))
    assert (error.code, error.status) == ("SignatureDoesNotMatch", 403)
    assert error.extra["AWSAccessKeyId"] == KEY_ID
    assert error.extra["StringToSign"].startswith("AWS4-HMAC-SHA256-PAYLOAD\n")
    assert "CanonicalRequest" not in error.extra


def test_data_is_passed_on_before_the_end_of_its_chunk_but_never_finished() -> None:
    body = encode_signed(b"hello world", []).replace(b"hello", b"jello")
    decoder = signed_decoder(11)
    half = body.index(b"world")
    assert b"".join(bytes(piece) for piece in decoder.feed(body[:half])) == b"jello "
    assert refusal(lambda: decoder.feed(body[half:])).code == "SignatureDoesNotMatch"


def test_chunks_may_not_change_places_or_be_left_out() -> None:
    body = encode_signed(b"a" * 8192 + b"b" * 8193, [8192])
    first, second = body.index(b"2001;"), body.index(b"\r\n0;") + 2
    swapped = body[first:second] + body[:first] + body[second:]
    assert refusal(lambda: decode(signed_decoder(16385), swapped)).code == "SignatureDoesNotMatch"
    shortened = body[:first] + body[second:]
    assert refusal(lambda: decode(signed_decoder(8192), shortened)).code == "SignatureDoesNotMatch"


def test_a_tampered_trailer() -> None:
    body = encode_signed(b"data", [], b"x-amz-checksum-crc32:AAAAAA==\n").replace(b"AAAAAA==", b"AAAAAB==")
    error = refusal(lambda: decode(trailer_decoder(4), body))
    assert error.code == "SignatureDoesNotMatch"
    assert error.extra["StringToSign"].startswith("AWS4-HMAC-SHA256-TRAILER\n")


@pytest.mark.parametrize("signature", [b"", b"abc", b"\xe9" * 64])
def test_a_trailer_signature_of_any_shape_is_only_ever_wrong(signature: bytes) -> None:
    body = encode_signed(b"data", [], b"x-amz-checksum-crc32:AAAAAA==\n")
    at = body.index(b"x-amz-trailer-signature:") + len(b"x-amz-trailer-signature:")
    changed = body[:at] + signature + body[at + 64 :]
    assert refusal(lambda: decode(trailer_decoder(4), changed)).code == "SignatureDoesNotMatch"


def test_a_trailer_without_its_signature() -> None:
    body = encode_signed(b"data", [], b"x-amz-checksum-crc32:AAAAAA==\n")
    unsigned = body[: body.index(b"x-amz-trailer-signature")] + b"\r\n"
    error = refusal(lambda: decode(trailer_decoder(4), unsigned))
    assert error.code == "IncompleteBody"


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 3, 5, 2**40])
def test_the_declared_length_is_the_length(length: int) -> None:
    error = refusal(lambda: decode(unsigned_decoder(length), encode_unsigned(b"data", [])))
    assert (error.code, error.status) == ("IncompleteBody", 400)
    assert error.extra == {"NumberBytesExpected": str(length), "NumberBytesProvided": "4"}


def test_more_data_than_declared_is_refused_before_it_arrives() -> None:
    decoder = unsigned_decoder(100)
    error = refusal(lambda: decoder.feed(b"ffffffffffffffff\r\n"))
    assert error.code == "IncompleteBody"
    assert decoder.received == 0


@given(stop=st.integers(0, FIRST) | st.integers(FIRST + 8190, len(WHOLE) - 1), cuts=cuts)
@settings(deadline=None)
def test_a_body_that_ends_early_is_incomplete(stop: int, cuts: list[int]) -> None:
    assert refusal(lambda: decode(trailer_decoder(len(DATA)), WHOLE[:stop], cuts)).code == "IncompleteBody"


@pytest.mark.parametrize("sizes", [[8192, 8192, 1], [1], [8191], [100_000, 8191]])
def test_the_last_chunk_may_be_of_any_size(sizes: list[int]) -> None:
    data = b"x" * sum(sizes)
    assert decode(signed_decoder(len(data)), encode_signed(data, sizes)) == data
    assert decode(unsigned_decoder(len(data)), encode_unsigned(data, sizes)) == data


@pytest.mark.parametrize(("sizes", "chunk", "bad"), [([8191, 1], "2", "8191"), ([8192, 3, 8192], "3", "3")])
def test_a_small_chunk_before_the_last_is_refused_as_s3_does(sizes: list[int], chunk: str, bad: str) -> None:
    data = b"x" * sum(sizes)
    for decoder, body in (
        (signed_decoder(len(data)), encode_signed(data, sizes)),
        (unsigned_decoder(len(data)), encode_unsigned(data, sizes)),
    ):
        error = refusal(partial(decode, decoder, body))
        assert (error.code, error.status) == ("InvalidChunkSizeError", 400)
        # The chunk that is one too many, and the size of the one before it: what S3 answers.
        assert error.extra == {"Chunk": chunk, "BadChunkSize": bad}


# --- malformed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+4\r\n",
        b"0x4\r\ndata\r\n",
        b" 4\r\ndata\r\n",
        b"4 \r\ndata\r\n",
        b"4\ndata\r\n",
        b"00000000000000004\r\ndata\r\n",
        b"4\r\ndata",
        b"4\r\ndatadata\r\n0\r\n\r\n",
        b"4\r\ndata0\r\n\r\n",
        b"4\r\ndata\n\n0\r\n\r\n",
        b"4\r\ndata\r\n0\r\n\r\nmore",
        b"4;a=" + b"x" * 600 + b"\r\ndata\r\n",
    ],
)
def test_malformed_chunks(body: bytes) -> None:
    error = refusal(lambda: decode(unsigned_decoder(4), body))
    assert (error.code, error.status) in (("InvalidRequest", 400), ("IncompleteBody", 400))
    assert error.code == "InvalidRequest" or body == b"4\r\ndata"


@pytest.mark.parametrize(
    "header", [b"4\r\n", b"4;chunk-signature=\r\n", b"4;chunk-signature=" + b"G" * 64 + b"\r\n", b"4;x=1\r\n"]
)
def test_a_signed_chunk_needs_its_signature(header: bytes) -> None:
    error = refusal(lambda: signed_decoder(4).feed(header))
    assert error.code == "InvalidRequest"
    assert "chunk-signature" in error.message


def test_a_body_of_signed_chunks_has_no_trailer() -> None:
    body = encode_signed(b"data", [])[:-2] + b"x-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    assert refusal(lambda: decode(signed_decoder(4), body)).code == "InvalidRequest"


@pytest.mark.parametrize(
    ("trailers", "message"),
    [
        (b"", "announced in x-amz-trailer but not sent: x-amz-checksum-crc32"),
        (b"x-amz-checksum-crc32\r\n", "not `name:value`"),
        (b"x amz:1\r\n", "not `name:value`"),
        (b":1\r\n", "not `name:value`"),
        (b"x-amz-checksum-sha1:x\r\n", "x-amz-checksum-sha1 was not announced"),
        (b"x-amz-trailer-signature:x\r\n", "x-amz-trailer-signature was not announced"),
        (b"x-amz-checksum-crc32:1\r\nX-Amz-Checksum-CRC32:1\r\n", "x-amz-checksum-crc32 is sent twice"),
        (b"x-amz-checksum-crc32:" + b"A" * 9000 + b"\r\n", "longer than 8192 bytes"),
        (b"x-amz-checksum-crc32:1\n" + b"a:" + b"A" * 9000, "longer than 8192 bytes"),
    ],
)
def test_malformed_trailers(trailers: bytes, message: str) -> None:
    body = encode_unsigned(b"data", [], trailers)
    error = refusal(lambda: decode(unsigned_decoder(4, "x-amz-checksum-crc32"), body))
    assert (error.code, error.status) == ("MalformedTrailerError", 400)
    assert message in error.message


def test_nothing_may_follow_the_trailer_signature() -> None:
    body = encode_signed(b"data", [], b"x-amz-checksum-crc32:AAAAAA==\n")[:-2]
    body += b"x-amz-checksum-crc32c:AAAAAA==\r\n\r\n"
    error = refusal(lambda: decode(trailer_decoder(4, "x-amz-checksum-crc32,x-amz-checksum-crc32c"), body))
    assert error.code == "MalformedTrailerError"


def test_a_trailer_may_be_empty_where_none_was_announced() -> None:
    decoder = unsigned_decoder(4)
    assert decode(decoder, encode_unsigned(b"data", [])) == b"data"
    assert decoder.trailers == {}


def test_only_chunked_payloads_have_a_decoder() -> None:
    for payload in (Payload.SIGNED, Payload.UNSIGNED):
        with pytest.raises(ValueError, match="not an aws-chunked payload"):
            ChunkedDecoder.for_request(verified(payload), decoded_length=1)


@given(body=st.binary(max_size=80) | st.text("0123456789abcdef;=\r\n:x-", max_size=60).map(str.encode), cuts=cuts)
@settings(max_examples=300, deadline=None)
def test_garbage_only_ever_raises_s3_errors(body: bytes, cuts: list[int]) -> None:
    for decoder in (signed_decoder(8), trailer_decoder(8), unsigned_decoder(8, "x")):
        with suppress(S3Error):
            decode(decoder, body, cuts)
        assert decoder.received <= 8
        assert len(decoder._line) <= chunked.MAX_TRAILER_BYTES
