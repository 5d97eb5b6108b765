"""What is Google Cloud Storage's own, beside the contract of all drivers."""

from __future__ import annotations

import gzip
import json
import os
import uuid
from base64 import b64encode
from collections.abc import AsyncIterator

import pytest
from awscrt import checksums
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.bench.scripted_server import answer
from tests.origin.routed import routed
from tests.origin.servers import BUCKET, GoogleServer, service_account_key
from tests.origin.test_contract import BODY, keys, opened, pieces, put, read
from tests.origin.test_egress import OnlyFront
from tests.server.wire import run
from tigrislike.origin import (
    Attributes,
    EgressRefused,
    Location,
    OriginBroken,
    OriginMissing,
    OriginRefused,
    open_origin,
)
from tigrislike.origin.egress import Egress
from tigrislike.origin.google import LIFETIME_S, ServiceAccount

ACCOUNT = "mover@project.iam.gserviceaccount.com"


def crc32c(body: bytes) -> str:
    return b64encode(checksums.crc32c(body).to_bytes(4, "big")).decode()


def test_what_is_stored_compressed_is_read_as_it_is_stored(google: GoogleServer) -> None:
    folder = uuid.uuid4().hex
    stored = gzip.compress(b"text, text, text" * 1000)
    google.put(f"{folder}/a", stored, Content_Encoding="gzip", Content_Type="text/plain")
    assert google.ask(f"{BUCKET}/{folder}/a") != stored  # by whoever does not ask for it so

    async def main() -> None:
        async with opened(google.location(folder)) as origin:
            found = await origin.head("a")
            assert found.size == len(stored)
            assert found.attributes.headers["ContentEncoding"] == "gzip"
            assert await read(origin, "a", 0, len(stored), len(stored), found.etag) == stored
            assert await read(origin, "a", 5, 50, len(stored), found.etag) == stored[5:50]

    run(main())


@pytest.mark.parametrize("odd", ["a//b", "folder/", "/lead", "a/../b", "x/./y", "tab\there"])
def test_whatever_key_somebody_else_chose_is_listed_and_read(google: GoogleServer, odd: str) -> None:
    folder = uuid.uuid4().hex
    for key in ("1", odd, "z"):
        google.put(f"{folder}/{key}", key.encode())

    async def main() -> None:
        async with opened(google.location(folder)) as origin:
            assert sorted(await keys(origin)) == sorted(["1", odd, "z"])
            size = len(odd.encode())
            assert await read(origin, odd, 0, size, size, (await origin.head(odd)).etag) == odd.encode()

    run(main())


def test_names_that_google_has_not_got_are_refused(google: GoogleServer) -> None:
    async def main() -> None:
        async with opened(google.location()) as origin:
            for key in (".", "..", "two\nlines", "x" * 1025):
                with pytest.raises(OriginRefused):
                    await put(origin, key)

    run(main())


def test_digests_and_storage_class_are_told(google: GoogleServer) -> None:
    body = os.urandom(66 << 20)

    async def main() -> None:
        async with opened(google.location(uuid.uuid4().hex)) as origin:
            attributes = Attributes(metadata={"place": "Zürich"}, storage_class="NEARLINE")
            whole = await origin.put("whole", pieces(BODY), len(BODY), attributes)
            assert whole.verified
            found = await origin.head("whole")
            assert found.md5
            assert (found.checksum_algorithm, found.checksum_type) == ("CRC32C", "FULL_OBJECT")
            assert found.checksum == crc32c(BODY)
            assert found.attributes.metadata == {"place": "Zürich"}
            assert found.attributes.storage_class == "NEARLINE"

            parts = await origin.put("parts", pieces(body, 1 << 20), len(body), Attributes(storage_class="GLACIER"))
            assert parts.verified  # by its CRC32C, for the ETag proves nothing
            found = await origin.head("parts")
            assert not found.md5
            assert found.checksum == crc32c(body)
            assert found.attributes.storage_class == "STANDARD"  # there is no GLACIER here

    run(main())


def test_a_written_object_of_another_crc_is_no_success() -> None:
    told = answer(b"", "200 OK", b'ETag: "whatever"', b"x-goog-hash: crc32c=AAAAAA==", b"x-goog-hash: md5=AAAA")

    async def main(port: int) -> None:
        async with opened(Location("gs://box", f"http://127.0.0.1:{port}")) as origin:
            with pytest.raises(OriginBroken, match="CRC32C"):
                await put(origin, "a", BODY)

    with routed(lambda line: told) as port:
        run(main(port))


def test_what_anybody_may_read_is_told_to_be_cacheable(google: GoogleServer) -> None:
    """There is no telling that from a Cache-Control that an object really has: docs/origins.md."""

    async def main() -> None:
        async with opened(google.location(uuid.uuid4().hex)) as origin:
            await put(origin, "a")
            assert (await origin.head("a")).attributes.headers == {"CacheControl": "public, max-age=3600"}

    run(main())


def test_whoever_has_no_key_may_read_and_not_write(google: GoogleServer) -> None:
    folder = uuid.uuid4().hex
    google.put(f"{folder}/a", b"body")

    async def main() -> None:
        async with opened(google.location(folder, key="")) as origin:
            found = await origin.head("a")
            assert await read(origin, "a", 0, 4, 4, found.etag) == b"body"
            assert await keys(origin) == ["a"]
            for refused in (put(origin, "a"), origin.delete("a")):
                with pytest.raises(OriginRefused):
                    await refused

    run(main())


def test_the_key_of_another_account_is_refused(google: GoogleServer) -> None:
    other = service_account_key(ACCOUNT, rsa.generate_private_key(65537, 2048))

    async def main() -> None:
        async with opened(google.location(key=other)) as origin:
            for refused in (put(origin, "a"), origin.head("a"), origin.list("")):
                with pytest.raises(OriginRefused):
                    await refused

    run(main())


ELLIPTIC = service_account_key(ACCOUNT, ec.generate_private_key(ec.SECP256R1()))
NOT_PEM = json.dumps({"private_key": "no key", "private_key_id": "", "client_email": ""})


@pytest.mark.parametrize(
    "key",
    ["not JSON", "[" * 100_000, "[]", "null", "{}", NOT_PEM, NOT_PEM.replace('"no key"', "7"), ELLIPTIC],
    ids=range(8),
)
def test_what_is_no_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(OriginRefused) as refused:
        open_origin(Location("gs://box", secret_key=key), egress=Egress())
    assert str(refused.value) == "the secret key of a Google origin is the JSON document of a service account's key"


def test_a_token_is_used_until_shortly_before_its_end() -> None:
    now_s = [1_800_000_000.5]
    account = ServiceAccount(
        service_account_key(ACCOUNT, rsa.generate_private_key(65537, 2048)), now_s=lambda: now_s[0]
    )
    first = account.token()
    now_s[0] += LIFETIME_S - 301
    assert account.token() == first
    now_s[0] += 2
    assert account.token() != first


def test_a_large_body_that_fails_leaves_no_parts_behind(google: GoogleServer) -> None:
    async def failing() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(1 << 20)
        raise LookupError("the block is gone")

    async def main() -> None:
        async with opened(google.location(uuid.uuid4().hex)) as origin:
            with pytest.raises(LookupError):
                await origin.put("large", failing(), 100 << 20, Attributes())
            with pytest.raises(OriginMissing):
                await origin.head("large")

    run(main())
    assert b"<Upload>" not in google.ask(f"{BUCKET}?uploads")


def test_nobody_that_a_key_names_is_asked(google: GoogleServer) -> None:
    """A key comes with URLs, of which the one for tokens is known for being asked; the gate is for all there are."""
    heads: list[bytes] = []
    with routed(lambda line: answer(b"{}", "200 OK"), heads) as port:
        elsewhere = f"http://127.0.0.1:{port}/"
        key = json.dumps({**json.loads(google.key), "token_uri": elsewhere, "gcs_base_url": elsewhere})

        async def main() -> None:
            with_leave = OnlyFront()
            for egress in (with_leave, Egress()):
                origin = open_origin(google.location(uuid.uuid4().hex, key=key), egress=egress)
                try:
                    if egress is with_leave:
                        await put(origin, "a")
                    else:
                        with pytest.raises(EgressRefused):
                            await put(origin, "a")
                finally:
                    await origin.close()
                    await egress.aclose()

        run(main())
    assert heads == []
