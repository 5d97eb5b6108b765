"""Where obstore ends: what it cannot name or read is refused, so that nobody waits for it to get better."""

from __future__ import annotations

import urllib.request
import uuid
from collections.abc import Iterator

import pytest

from tests.origin import servers
from tests.origin.test_contract import keys, opened, pieces, put
from tests.server.wire import run
from tigrislike.origin import Attributes, Location, OriginMissing, OriginRefused


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.azure(tmp_path_factory.mktemp("azure")) as endpoint:
        yield endpoint


def put_behind_its_back(azure: str, path: str, **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{azure}/{servers.BUCKET}/{path}", b"x", named, method="PUT")
    urllib.request.urlopen(request).close()


def test_a_key_that_has_no_name_keeps_its_container_from_being_listed_and_nothing_else(azure: str) -> None:
    folder = uuid.uuid4().hex
    put_behind_its_back(azure, f"{folder}/a//b")

    async def main() -> None:
        async with opened(Location(f"az://{servers.BUCKET}/{folder}", azure, access_key="account")) as origin:
            etag = await put(origin, "z")
            assert (await origin.head("z")).etag == etag
            with pytest.raises(OriginRefused, match="empty path segment"):
                await keys(origin)

    run(main())


def test_metadata_beyond_ascii_are_refused_either_way(azure: str) -> None:
    folder = uuid.uuid4().hex
    put_behind_its_back(azure, f"{folder}/there", x_ms_meta_place="Zürich")

    async def main() -> None:
        async with opened(Location(f"az://{servers.BUCKET}/{folder}", azure, access_key="account")) as origin:
            with pytest.raises(OriginRefused, match="non UTF-8"):
                await origin.head("there")
            for value in ("Zürich", "two\nlines"):
                with pytest.raises(OriginRefused, match="place"):
                    await origin.put("a", pieces(b"x"), 1, Attributes(metadata={"place": value}))
            with pytest.raises(OriginMissing):
                await origin.head("a")

    run(main())
