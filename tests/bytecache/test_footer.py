"""The footer: what is encoded is parsed back, and nothing else is taken for a footer."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.bytecache.errors import CorruptBlock
from tigrislike.bytecache.footer import (
    CHUNK,
    FOOTER_BYTES,
    MAX_BLOCK_SIZE,
    Footer,
    block_count,
    block_length,
    checksum,
    chunk_count,
    padded,
)


@st.composite
def footers(draw: st.DrawFn) -> Footer:
    block_size = draw(st.integers(1, MAX_BLOCK_SIZE // 4096)) * 4096
    length = draw(st.integers(0, block_size))
    blob_id = draw(st.binary(min_size=16, max_size=16))
    seed = draw(st.binary(min_size=8, max_size=8))
    return Footer(blob_id, draw(st.integers(0, 2**32 - 1)), length, block_size, seed * chunk_count(length))


@given(footers())
def test_a_footer_is_one_page_and_parses_back(footer: Footer) -> None:
    page = footer.encode()
    assert len(page) == FOOTER_BYTES
    assert Footer.parse(page) == footer


@given(st.binary(max_size=2 * FOOTER_BYTES) | st.binary(min_size=FOOTER_BYTES, max_size=FOOTER_BYTES))
def test_other_bytes_are_not_a_footer(page: bytes) -> None:
    with pytest.raises(CorruptBlock):
        Footer.parse(page)


def test_every_flipped_bit_is_noticed() -> None:
    page = Footer(bytes(range(16)), 3, 2 * CHUNK + 5, 8 * 1024 * 1024, bytes(range(24))).encode()
    for bit in range(8 * FOOTER_BYTES):
        damaged = bytearray(page)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBlock):
            Footer.parse(damaged)


HEAD = struct.Struct("<8sHHI16sIIII")
GOOD = (b"TGRBLOCK", 1, 0, 8 * 1024 * 1024, bytes(16), 0, CHUNK + 1, CHUNK, 2)


def _sealed(head: tuple[object, ...], table: bytes = bytes(16)) -> bytes:
    """A page with a right checksum around a head that may be wrong."""
    body = (HEAD.pack(*head) + table).ljust(FOOTER_BYTES - 8, b"\0")
    return body + struct.pack("<Q", checksum(body))


def test_the_layout_is_the_documented_one() -> None:
    assert Footer.parse(_sealed(GOOD)) == Footer(bytes(16), 0, CHUNK + 1, 8 * 1024 * 1024, bytes(16))


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        (0, b"TGRBLOCX", "magic"),
        (1, 2, "version 2"),
        (1, 0, "version 0"),
        (2, 1, "cipher 1"),
        (3, 0, "contradicts"),
        (3, 4096, "contradicts"),
        (3, 2**32 - 1, "contradicts"),
        (6, 2**32 - 1, "contradicts"),
        (6, 0, "contradicts"),
        (7, 0, "contradicts"),
        (8, 1, "contradicts"),
        (8, 2**32 - 1, "contradicts"),
    ],
)
def test_a_well_sealed_footer_with_a_wrong_field_is_refused_saying_why(field: int, value: object, why: str) -> None:
    head = (*GOOD[:field], value, *GOOD[field + 1 :])
    with pytest.raises(CorruptBlock, match=why):
        Footer.parse(_sealed(head))


def test_tags_without_a_cipher_are_refused() -> None:
    with pytest.raises(CorruptBlock, match="zeros"):
        Footer.parse(_sealed(GOOD, bytes(16) + b"\1"))


@given(
    st.tuples(*(st.integers(0, 2**32 - 1) for _ in range(5)), st.integers(0, 2), st.integers(0, 1)),
    st.binary(max_size=400),
)
def test_no_well_sealed_page_makes_the_parser_fail_otherwise(numbers: tuple[int, ...], table: bytes) -> None:
    block_size, number, length, chunk, count, version, cipher = numbers
    page = _sealed((b"TGRBLOCK", version, cipher, block_size, bytes(16), number, length, chunk, count), table)
    try:
        footer = Footer.parse(page)
    except CorruptBlock:
        return
    assert footer.encode() == page


@given(st.integers(0, 10**9), st.integers(1, 2000).map(lambda pages: 4096 * pages))
def test_the_blocks_of_a_blob_add_up(size: int, block_size: int) -> None:
    count = block_count(size, block_size)
    assert count >= 1
    ends = [block_length(size, block_size, number) for number in (0, count - 1, count)]
    assert ends[2] == 0
    assert (count - 1) * block_size + ends[1] == size
    assert padded(ends[1]) % 4096 == 0
    assert 0 <= padded(ends[1]) - ends[1] < 4096
