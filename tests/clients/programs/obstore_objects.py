"""What users of obstore do, as functions of a bucket's name. Run by ../test_obstore.py with obstore's own Python."""

import os
import sys
import threading

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

MIB = 1024 * 1024


def _store(bucket: str, **options: str) -> S3Store:
    # Endpoint, keys and region come from the environment; plain http must be allowed by the program.
    return S3Store(bucket, client_options={"allow_http": True}, **options)


def _refused(error: type[Exception], call: object, *arguments: object, **options: object) -> None:
    try:
        call(*arguments, **options)
    except error:
        return
    raise AssertionError(f"{error.__name__} was expected")


def objects_are_put_and_got(bucket: str) -> None:
    store = _store(bucket)
    for size in (0, 1, 100_000, 3 * MIB):
        body = os.urandom(size)
        put = obstore.put(store, f"a/{size}", body, use_multipart=False)
        got = obstore.get(store, f"a/{size}")
        assert bytes(got.bytes()) == body
        assert got.meta["e_tag"] == put["e_tag"]
        assert obstore.head(store, f"a/{size}")["size"] == size
    _refused(FileNotFoundError, obstore.get, store, "nothing")


def create_succeeds_once(bucket: str) -> None:
    store = _store(bucket)
    first = obstore.put(store, "k", b"first", mode="create")
    _refused(AlreadyExistsError, obstore.put, store, "k", b"second", mode="create")
    assert bytes(obstore.get(store, "k").bytes()) == b"first"
    assert obstore.head(store, "k")["e_tag"] == first["e_tag"]


def update_needs_the_current_etag(bucket: str) -> None:
    store = _store(bucket)
    first = obstore.put(store, "k", b"first")
    second = obstore.put(store, "k", b"second", mode={"e_tag": first["e_tag"]})
    _refused(PreconditionError, obstore.put, store, "k", b"third", mode={"e_tag": first["e_tag"]})
    assert bytes(obstore.get(store, "k").bytes()) == b"second"
    obstore.put(store, "k", b"third", mode={"e_tag": second["e_tag"]})
    assert bytes(obstore.get(store, "k").bytes()) == b"third"


def create_is_won_by_one_of_many(bucket: str) -> None:
    store = _store(bucket)
    winners = []
    barrier = threading.Barrier(8)

    def put(number: int) -> None:
        barrier.wait()
        try:
            obstore.put(store, "k", b"%d" % number, mode="create")
        except AlreadyExistsError:
            return
        winners.append(number)

    _threads(put)
    assert len(winners) == 1
    assert bytes(obstore.get(store, "k").bytes()) == b"%d" % winners[0]


def no_update_is_lost(bucket: str) -> None:
    store = _store(bucket)
    obstore.put(store, "counter", b"0")

    def count(_: int) -> None:
        for _ in range(10):
            while True:
                got = obstore.get(store, "counter")
                value = int(bytes(got.bytes()))
                try:
                    # The body differs from every other thread's, so that no two states have one ETag.
                    obstore.put(store, "counter", b"%d" % (value + 1), mode={"e_tag": got.meta["e_tag"]})
                except PreconditionError:
                    continue
                break

    _threads(count)
    assert bytes(obstore.get(store, "counter").bytes()) == b"80"


def _threads(target: object) -> None:
    errors = []

    def guarded(number: int) -> None:
        try:
            target(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def multipart_uploads_and_writers(bucket: str) -> None:
    store = _store(bucket)
    body = os.urandom(23 * MIB + 3)
    put = obstore.put(store, "parts", body, use_multipart=True, chunk_size=5 * MIB, max_concurrency=3)
    assert put["e_tag"].endswith('-5"')
    assert bytes(obstore.get(store, "parts").bytes()) == body
    with obstore.open_writer(store, "writer", buffer_size=5 * MIB) as writer:
        for start in range(0, len(body), MIB):
            writer.write(body[start : start + MIB])
    assert bytes(obstore.get(store, "writer").bytes()) == body
    reader = obstore.open_reader(store, "writer")
    reader.seek(20 * MIB)
    assert bytes(reader.read(100)) == body[20 * MIB : 20 * MIB + 100]
    assert b"".join(bytes(chunk) for chunk in obstore.get(store, "parts").stream(min_chunk_size=MIB)) == body


def ranges_are_read(bucket: str) -> None:
    store = _store(bucket)
    body = os.urandom(MIB)
    obstore.put(store, "k", body)
    assert bytes(obstore.get_range(store, "k", start=10, end=20)) == body[10:20]
    ranges = obstore.get_ranges(store, "k", starts=[0, 500_000, len(body) - 1], ends=[3, 900_000, len(body)])
    assert [bytes(part) for part in ranges] == [body[:3], body[500_000:900_000], body[-1:]]
    assert bytes(obstore.get(store, "k", options={"range": {"suffix": 7}}).bytes()) == body[-7:]
    assert bytes(obstore.get(store, "k", options={"range": {"offset": 1_000_000}}).bytes()) == body[1_000_000:]


def reads_can_be_conditional(bucket: str) -> None:
    store = _store(bucket)
    tag = obstore.put(store, "k", b"x")["e_tag"]
    assert bytes(obstore.get(store, "k", options={"if_match": tag}).bytes()) == b"x"
    _refused(PreconditionError, obstore.get, store, "k", options={"if_match": '"another"'})
    from obstore.exceptions import NotModifiedError

    _refused(NotModifiedError, obstore.get, store, "k", options={"if_none_match": tag})


def objects_are_listed_in_pages(bucket: str) -> None:
    store = _store(bucket)
    names = [f"a/{number:04}" for number in range(1205)] + ["b/ü %2F", "c"]
    for name in names:
        obstore.put(store, name, b"x", use_multipart=False)
    listed = [entry["path"] for page in obstore.list(store, chunk_size=500) for entry in page]
    assert listed == names
    assert [entry["path"] for page in obstore.list(store, offset="a/1200") for entry in page] == names[1201:]
    level = obstore.list_with_delimiter(store)
    assert (level["common_prefixes"], [entry["path"] for entry in level["objects"]]) == (["a", "b"], ["c"])
    obstore.delete(store, names)
    assert [entry for page in obstore.list(store) for entry in page] == []


def objects_are_copied_and_renamed(bucket: str) -> None:
    # object_store makes "copy unless there" of an upload with one part copy and a condition on its completion.
    store = _store(bucket, copy_if_not_exists="multipart")
    obstore.put(store, "k", b"x", attributes={"Content-Type": "text/plain", "one": "1"})
    obstore.copy(store, "k", "copy")
    obstore.copy(store, "k", "second", overwrite=False)
    _refused(AlreadyExistsError, obstore.copy, store, "k", "second", overwrite=False)
    obstore.rename(store, "copy", "renamed")
    assert [entry["path"] for page in obstore.list(store) for entry in page] == ["k", "renamed", "second"]
    assert obstore.get(store, "renamed").attributes["Content-Type"] == "text/plain"


def links_are_signed(bucket: str) -> None:
    import ssl
    import urllib.request
    from datetime import timedelta

    store = _store(bucket)
    context = ssl.create_default_context()
    url = obstore.sign(store, "PUT", "a b", timedelta(minutes=5))
    with urllib.request.urlopen(urllib.request.Request(url, b"linked", method="PUT"), context=context) as answer:
        assert answer.status == 200
    with urllib.request.urlopen(obstore.sign(store, "GET", "a b", timedelta(minutes=5)), context=context) as answer:
        assert answer.read() == b"linked"


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
