"""What users of s3fs do, as functions of a bucket's name. Run by ../test_s3fs.py with s3fs's own Python."""

import hashlib
import os
import sys

import s3fs

MIB = 1024 * 1024


def _filesystem() -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(use_listings_cache=False)


def written_files_are_read_back(bucket: str) -> None:
    fs = _filesystem()
    for size in (0, 1, 100_000, 6 * MIB):
        body = os.urandom(size)
        fs.pipe(f"{bucket}/a/{size}", body)
        assert fs.cat(f"{bucket}/a/{size}") == body
        assert fs.info(f"{bucket}/a/{size}")["size"] == size
        assert fs.info(f"{bucket}/a/{size}")["ETag"] == f'"{hashlib.md5(body).hexdigest()}"'
    with fs.open(f"{bucket}/text", "w", encoding="utf-8") as file:
        file.write("first\nsecond ä\n")
    with fs.open(f"{bucket}/text", "r", encoding="utf-8") as file:
        assert list(file) == ["first\n", "second ä\n"]


def a_large_file_is_written_in_parts_and_read_by_ranges(bucket: str) -> None:
    fs = _filesystem()
    body = os.urandom(17 * MIB + 5)
    with fs.open(f"{bucket}/large", "wb", block_size=5 * MIB) as file:
        for start in range(0, len(body), MIB):
            file.write(body[start : start + MIB])
    assert fs.info(f"{bucket}/large")["ETag"].endswith('-4"')
    with fs.open(f"{bucket}/large", "rb", block_size=MIB) as file:
        for position in (0, 5 * MIB - 3, 16 * MIB, len(body) - 1):
            file.seek(position)
            assert file.read(10) == body[position : position + 10]
    ranges = fs.cat_ranges([f"{bucket}/large"] * 3, [0, 7, len(body) - 9], [5, 12 * MIB, len(body)])
    assert ranges == [body[:5], body[7 : 12 * MIB], body[-9:]]


def a_file_that_is_discarded_leaves_nothing(bucket: str) -> None:
    fs = _filesystem()
    file = fs.open(f"{bucket}/discarded", "wb", block_size=5 * MIB, autocommit=False)
    file.write(os.urandom(11 * MIB))
    file.flush()
    file.discard()
    assert not fs.exists(f"{bucket}/discarded")
    assert fs.list_multipart_uploads(bucket) == []


def files_are_appended_to(bucket: str) -> None:
    fs = _filesystem()
    small, large = os.urandom(1000), os.urandom(6 * MIB)
    for name, first in (("small", small), ("large", large)):
        fs.pipe(f"{bucket}/{name}", first)
        with fs.open(f"{bucket}/{name}", "ab", block_size=5 * MIB) as file:
            file.write(b"appended")
        assert fs.cat(f"{bucket}/{name}") == first + b"appended"


def directories_are_listed_found_and_globbed(bucket: str) -> None:
    fs = _filesystem()
    names = ["top", "a/one", "a/two", "a/b/three", "a/b/c/four", "with space/ü+%2F?", "list[1]/x"]
    for name in names:
        fs.pipe(f"{bucket}/{name}", name.encode())
    assert fs.find(bucket) == sorted(f"{bucket}/{name}" for name in names)
    assert sorted(fs.ls(f"{bucket}/a", detail=False)) == [f"{bucket}/a/b", f"{bucket}/a/one", f"{bucket}/a/two"]
    assert fs.glob(f"{bucket}/a/**/t*") == [f"{bucket}/a/b/three", f"{bucket}/a/two"]
    assert {root: (sorted(folders), sorted(files)) for root, folders, files in fs.walk(f"{bucket}/a")} == {
        f"{bucket}/a": (["b"], ["one", "two"]),
        f"{bucket}/a/b": (["c"], ["three"]),
        f"{bucket}/a/b/c": ([], ["four"]),
    }
    assert fs.du(f"{bucket}/a") == sum(len(name) for name in names if name.startswith("a/"))
    assert fs.isdir(f"{bucket}/a/b")
    assert fs.isfile(f"{bucket}/with space/ü+%2F?")
    assert not fs.exists(f"{bucket}/nothing")
    assert fs.cat(f"{bucket}/with space/ü+%2F?") == "with space/ü+%2F?".encode()


def trees_are_copied_moved_and_removed(bucket: str) -> None:
    fs = _filesystem()
    large = os.urandom(6 * MIB)
    fs.pipe({f"{bucket}/a/{name}": name.encode() for name in ("one", "b/two", "b/c/three")} | {f"{bucket}/big": large})
    fs.cp(f"{bucket}/a/", f"{bucket}/copy/", recursive=True)
    assert fs.cat(f"{bucket}/copy/b/c/three") == b"b/c/three"
    # Without a depth mv() also wants to copy the directories' names, which are no objects (fsspec/s3fs#394).
    fs.mv(f"{bucket}/a/b/", f"{bucket}/moved/", recursive=True, maxdepth=9)
    fs.mv(f"{bucket}/big", f"{bucket}/moved/big")
    assert fs.cat(f"{bucket}/moved/big") == large
    moved = ["a/one", "copy/b/c/three", "copy/b/two", "copy/one", "moved/big", "moved/c/three", "moved/two"]
    assert fs.find(bucket) == [f"{bucket}/{name}" for name in moved]
    fs.rm(f"{bucket}/copy", recursive=True)
    fs.rm([f"{bucket}/a/one", f"{bucket}/moved/big"])
    assert fs.find(bucket) == [f"{bucket}/moved/c/three", f"{bucket}/moved/two"]


def two_thousand_files_are_listed_and_removed(bucket: str) -> None:
    fs = _filesystem()
    names = [f"{bucket}/many/{number:04}" for number in range(2001)]
    fs.pipe(dict.fromkeys(names, b"x"))
    assert fs.find(f"{bucket}/many") == names
    fs.rm(f"{bucket}/many", recursive=True)
    assert fs.find(bucket) == []


def directories_go_up_and_come_down(bucket: str) -> None:
    fs = _filesystem()
    os.makedirs("up/sub")
    files = {"up/one": os.urandom(1000), "up/sub/two": os.urandom(9 * MIB)}
    for name, body in files.items():
        with open(name, "wb") as file:
            file.write(body)
    fs.put("up/", f"{bucket}/tree/", recursive=True)
    fs.get(f"{bucket}/tree/", "down/", recursive=True)
    for name, body in files.items():
        with open(name.replace("up", "down"), "rb") as file:
            assert file.read() == body


def tags_metadata_and_links_work(bucket: str) -> None:
    fs = _filesystem()
    path = f"{bucket}/k"
    with fs.open(path, "wb", Metadata={"one": "1"}) as file:
        file.write(b"x")
    assert fs.metadata(path) == {"one": "1"}
    fs.setxattr(path, two="2")
    assert fs.getxattr(path, "two") == "2"
    fs.put_tags(path, {"tag": "value"})
    assert fs.get_tags(path) == {"tag": "value"}
    assert "X-Amz-Signature" in fs.url(path) or "Signature" in fs.url(path)
    fs.touch(f"{bucket}/empty")
    assert fs.checksum(path) != fs.checksum(f"{bucket}/empty")


def buckets_are_made_and_removed(bucket: str) -> None:
    fs = _filesystem()
    other = f"{bucket}-2"
    fs.mkdir(other)
    assert {bucket, other} <= set(fs.ls("", detail=False))
    fs.rmdir(other)
    assert other not in fs.ls("", detail=False)
    try:
        fs.ls("no-such-bucket-at-all")
    except FileNotFoundError:
        pass
    else:
        raise AssertionError("a bucket that is not there was listed")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
