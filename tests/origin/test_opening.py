"""From a location to a driver, those of other distributions included."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tigrislike.origin import Egress, Location, OriginRefused, Timeouts, open_origin
from tigrislike.origin.opening import GROUP

DRIVER = """
class TapeOrigin:
    loses = frozenset({"tags"})
    def __init__(self, location, egress, timeouts):
        self.name, self.timeouts = location.url, timeouts
"""


@pytest.fixture
def tape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution as pip leaves it: a module, and its dist-info with entry points."""
    (tmp_path / "tape_origin.py").write_text(DRIVER)
    info = tmp_path / "tape_origin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tape-origin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntape = tape_origin:TapeOrigin\ns3 = tape_origin:TapeOrigin\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tape_origin", raising=False)


@pytest.mark.usefixtures("tape")
def test_another_distribution_adds_a_driver_and_takes_none_away() -> None:
    timeouts = Timeouts(1, 2)
    for url in ("tape://library/shelf", "tape+slow://library"):
        origin = open_origin(Location(url), egress=Egress(), timeouts=timeouts)
        assert type(origin).__name__ == "TapeOrigin"
        assert origin.name == url
        assert origin.timeouts is timeouts  # type: ignore[attr-defined]
    assert type(open_origin(Location("s3://bucket"), egress=Egress())).__name__ == "S3Origin"


@pytest.mark.parametrize("url", ["tape://library", "bucket", "", "s3", "://", "s3:/bucket"])
def test_a_url_without_a_driver_is_refused(url: str) -> None:
    with pytest.raises(OriginRefused, match=r"there are: arrow, az, file, gs, http, https, s3"):
        open_origin(Location(url), egress=Egress())


@pytest.mark.parametrize(
    "location",
    [
        Location(
            "s3://b", "https://user:sesame@host/?x=sesame", "r", "sesame-id", "sesame", {"session_token": "sesame"}
        ),
        Location("https://user:sesame@host/path"),
        Location("https://host/path?signature=sesame"),
        Location("az://box", access_key="account", options={"sas": "sesame"}),
    ],
)
def test_a_location_never_shows_a_secret(location: Location) -> None:
    assert "sesame" not in repr(location)
    assert "sesame" not in f"{location}"
    try:
        name = open_origin(location, egress=Egress()).name
    except OriginRefused as error:
        name = str(error)
    assert "sesame" not in name


@pytest.mark.parametrize(
    "location",
    [
        Location("az://box"),
        Location("gs://"),
        Location("file://relative"),
        Location("file:///nowhere/at/all"),
        Location("arrow+nothing://path"),
        Location("http://user@host/"),
    ],
)
def test_a_location_that_is_none_is_refused(location: Location) -> None:
    with pytest.raises(OriginRefused):
        open_origin(location, egress=Egress(allow_private=True))
