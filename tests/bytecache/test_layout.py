"""The root directory: what it says about itself, who may open it, and what is not a block."""

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bytecache.blobs import BLOCK
from tigrislike.bytecache import BlockSizeMismatch, BlockStore, FormatTooNew, NotABlockStore
from tigrislike.bytecache.layout import parse_block_name, parse_number


def _open(root: Path) -> bytes:
    store = BlockStore.open(root, block_size=BLOCK)
    store.close()
    return store.node_id


def test_the_node_id_is_made_once_and_a_wiped_directory_is_a_new_node(scratch: Path) -> None:
    first = _open(scratch / "deep" / "a")
    assert len(first) == 16
    assert _open(scratch / "deep" / "a") == first
    assert _open(scratch / "b") != first


def test_processes_that_open_a_new_root_at_once_agree_on_the_node(scratch: Path) -> None:
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(_open(scratch))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def _edit(root: Path, **changes: object) -> None:
    path = root / "format.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(document))


def test_a_newer_format_is_refused(scratch: Path) -> None:
    _open(scratch)
    _edit(scratch, format=2)
    with pytest.raises(FormatTooNew, match="format 2"):
        _open(scratch)


def test_another_block_size_is_refused(scratch: Path) -> None:
    _open(scratch)
    with pytest.raises(BlockSizeMismatch, match=str(BLOCK)):
        BlockStore.open(scratch, block_size=2 * BLOCK)


@pytest.mark.parametrize(
    "changes",
    [{"format": "x"}, {"format": 0}, {"format": None}, {"node": "zz"}, {"node": ""}, {"node": 5}, {"block_size": 0},
     {"block_size": "large"}, {"block_size": 2**40}],
)  # fmt: skip
def test_a_format_file_with_wrong_values_is_refused(scratch: Path, changes: dict[str, object]) -> None:
    _open(scratch)
    _edit(scratch, **changes)
    with pytest.raises(NotABlockStore):
        _open(scratch)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff\xfe", b"{}", b"7"])
def test_a_format_file_that_is_not_one_is_refused(scratch: Path, text: bytes) -> None:
    _open(scratch)
    (scratch / "format.json").write_bytes(text)
    with pytest.raises(NotABlockStore):
        _open(scratch)


def test_blocks_without_a_format_file_are_not_adopted(scratch: Path) -> None:
    _open(scratch)
    (scratch / "format.json").unlink()
    with pytest.raises(NotABlockStore, match="format"):
        _open(scratch)


def test_foreign_files_beside_the_trees_do_not_matter(scratch: Path) -> None:
    (scratch / "lost+found").mkdir()
    _open(scratch)


@pytest.mark.parametrize("block_size", [0, -4096, 1, 4097, 64 * 1024 * 1024])
def test_an_impossible_block_size_is_refused(scratch: Path, block_size: int) -> None:
    with pytest.raises(ValueError, match="block_size"):
        BlockStore.open(scratch / "new", block_size=block_size)
    assert not (scratch / "new").exists()


@given(st.binary(min_size=16, max_size=16), st.integers(0, 2**32 - 1))
def test_block_names_parse_back(blob_id: bytes, number: int) -> None:
    assert parse_block_name(f"{blob_id.hex()}.{number}") == (blob_id, number)


@pytest.mark.parametrize("name", ["", ".", "0", f"{'0' * 32}", f"{'0' * 32}.", f"{'0' * 32}.01", f"{'0' * 32}.1.2",
                                  f"{'0' * 32}.-1", f"{'A' * 32}.0", f"{'0' * 31}.0", f"{'0' * 32}.٣"])  # fmt: skip
def test_other_names_are_not_blocks(name: str) -> None:
    assert parse_block_name(name) is None


@given(st.text(max_size=12))
def test_numbers_are_plain_decimals(text: str) -> None:
    number = parse_number(text)
    assert number is None or str(number) == text
