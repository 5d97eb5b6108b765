"""Settings: which source wins, what is refused, and that every setting can be explained."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tigrislike.config import (
    ConfigError,
    Settings,
    load_settings,
    options,
    parse_duration,
    parse_size,
    unknown_variables,
)
from tigrislike.metadata.deciding import QUEUE, QueueParameters
from tigrislike.metadata.records import OriginPlace
from tigrislike.node import Node, origin_limits, origin_opener, queue_parameters
from tigrislike.origin.resilient import Limits, Resilient
from tigrislike.replication.consumer import WORKERS
from tigrislike.server import peer_endpoint, primary_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", 0), ("17", 17), ("8MiB", 8 << 20), ("8M", 8 << 20), ("8 mb", 8_000_000), ("64kB", 64_000), ("1.5k", 1536)],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "8XB", "MiB", "1e3", "0.5", "8 MiB B", "٣"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "expected"), [("30", 30), ("250ms", 0.25), ("5m", 300), ("1.5h", 5400), ("7d", 604800)]
)
def test_durations_are_read_as_people_write_them(text: str, expected: float) -> None:
    assert parse_duration(text) == expected


@given(st.text(max_size=8))
def test_reading_a_quantity_gives_a_number_or_value_error(text: str) -> None:
    for parse in (parse_size, parse_duration):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


def test_a_flag_stands_above_the_environment_and_that_above_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = 1\nregion = "file"\nheader-timeout = "3s"\nmax_connections = 7\n')
    environment = {"TIGRISLIKE_PORT": "2", "TIGRISLIKE_REGION": "env"}
    settings = load_settings({"port": "3", "region": None}, environment, file)
    assert settings.port == 3
    assert settings.region == "env"
    assert settings.header_timeout_s == 3.0
    assert settings.max_connections == 7
    assert settings.host == "127.0.0.1"


def test_an_empty_variable_counts_as_absent() -> None:
    assert load_settings({}, {"TIGRISLIKE_PORT": ""}).port == 9000


def test_what_follows_from_other_settings_is_filled_in(tmp_path: Path) -> None:
    settings = load_settings({"data_dir": str(tmp_path / "a b")}, {})
    assert settings.metadata == f"sqlite://{tmp_path}/a%20b/metadata.db"
    assert settings.sqlite_path == tmp_path / "a b" / "metadata.db"
    assert settings.cache_dir == tmp_path / "a b" / "cache"
    assert settings.master_key_path == tmp_path / "a b" / "master.key"
    assert settings.workers == len(os.sched_getaffinity(0))


def test_parts_can_be_put_elsewhere(tmp_path: Path) -> None:
    flags = {"metadata": f"sqlite://{tmp_path}/m.db", "cache_dir": "/c", "master_key_file": "/k"}
    settings = load_settings(flags, {})
    assert (settings.sqlite_path, settings.cache_dir) == (tmp_path / "m.db", Path("/c"))
    assert settings.master_key_path == Path("/k")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "65536"),
        ("port", "http"),
        ("workers", "-1"),
        ("block_size", "3MiB"),
        ("block_size", "0"),
        ("body_timeout_s", "0"),
        ("max_connections", "0"),
        ("metadata", "postgres://x"),
        ("metadata", "sqlite://host/x"),
        ("domain", "not a host"),
        ("log_level", "loud"),
        ("data_dir", ""),
        ("inline_bytes", "1MiB"),
        ("max_peer_requests", "0"),
        ("peer_source_address", "host.example"),
        ("peer_connect_timeout_s", "0"),
        ("peer_ca", ""),
        ("advertise", "10.0.0.1:9000"),
        ("advertise", "ftp://10.0.0.1"),
        ("advertise", "http://"),
        ("advertise", "http://10.0.0.1:0"),
        ("advertise", "http://10.0.0.1:99999"),
        ("advertise", "http://10.0.0.1/path"),
        ("advertise", "http://user@10.0.0.1"),
        ("queue_workers", "0"),
        ("queue_item_lease_s", "2"),
        ("queue_poll_s", "0"),
        ("queue_batch", "0"),
        ("queue_batch", "101"),
        ("queue_attempts", "0"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_by_name(name: str, value: str) -> None:
    option = next(option for option in options() if option.attribute == name)
    with pytest.raises(ConfigError) as refused:
        load_settings({name: value}, {})
    assert option.name in str(refused.value)
    assert value in str(refused.value) or name == "inline_bytes"


@pytest.mark.parametrize("source", ["flag --port", "environment variable TIGRISLIKE_PORT", "file "])
def test_a_refusal_names_the_source(tmp_path: Path, source: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('port = "x"' if source == "file " else "")
    flags = {"port": "x"} if source.startswith("flag") else {}
    environment = {"TIGRISLIKE_PORT": "x"} if source.startswith("environment") else {}
    with pytest.raises(ConfigError, match=source):
        load_settings(flags, environment, file)


def test_a_refusal_does_not_show_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings({}, {"TIGRISLIKE_ROOT_SECRET_KEY": "hush-hush"})
    assert "hush-hush" not in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"tls_cert": "/c"},
        {"tls_key": "/k"},
        {"metadata": "fdb:///etc/fdb.cluster"},
        {"queue_poll_s": "1s", "queue_pointer_lease_s": "1s"},
        {"queue_poll_s": "500ms", "queue_scan_s": "400ms"},
        {"queue_back_off_s": "61s"},
    ],
)
def test_settings_that_do_not_go_together_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        load_settings(values, {})


def test_root_keys_and_master_keys_come_in_one_way_only() -> None:
    with pytest.raises(ConfigError, match="together"):
        load_settings({}, {"TIGRISLIKE_ROOT_ACCESS_KEY": "a"})
    with pytest.raises(ConfigError, match="both"):
        load_settings({"master_key_file": "/k"}, {"TIGRISLIKE_MASTER_KEY": "k"})


@pytest.mark.parametrize(
    ("content", "message"),
    [("prot = 1", "did you mean port"), ("port = [1]", "a text or a number"), ("port =", "settings file")],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_settings({}, {}, file)
    with pytest.raises(ConfigError, match="absent"):
        load_settings({}, {}, tmp_path / "absent.toml")


def test_unknown_variables_are_pointed_out() -> None:
    sentences = unknown_variables({"TIGRISLIKE_PROT": "1", "TIGRISLIKE_PORT": "1", "HOME": "/"})
    assert sentences == ["environment variable TIGRISLIKE_PROT is no setting; did you mean TIGRISLIKE_PORT?"]


def test_every_setting_is_explained_and_its_shown_default_is_its_default() -> None:
    defaults: Any = Settings()
    for option in options():
        assert option.help.endswith("."), option.name
        value = getattr(defaults, option.attribute)
        if not option.secret and isinstance(value, int | float):
            try:
                shown = option.parse(option.shown)
            except ValueError:
                continue  # said in words: "one per CPU core"
            assert shown == value, option.name


def test_the_cache_takes_what_the_disk_has_unless_told_otherwise() -> None:
    assert load_settings({}, {}).cache_bytes is None
    assert load_settings({"cache_bytes": "auto"}, {}).cache_bytes is None
    assert load_settings({"cache_bytes": "2TB"}, {"TIGRISLIKE_CACHE_SIZE": "auto"}).cache_bytes == 2 * 1000**4


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("cache_bytes", "0"),
        ("cache_bytes", "much"),
        ("cache_policy", "arc"),
        ("verify", "never"),
        ("fill_bytes", "0"),
        ("fill_timeout_s", "0"),
        ("scrub_rate", "0"),
        ("scrub_interval_s", "-1"),
    ],
)
def test_a_cache_that_could_not_work_is_refused(attribute: str, text: str) -> None:
    (name,) = [option.name for option in options() if option.attribute == attribute]
    with pytest.raises(ConfigError, match=f"setting {name}: '{text}' from the flag --{name}: "):
        load_settings({attribute: text}, {})


def test_the_queue_is_paced_as_the_settings_have_it() -> None:
    assert queue_parameters(Settings()) == QUEUE
    assert Settings().queue_workers == WORKERS
    flags = {
        "queue_item_lease_s": "3s",
        "queue_pointer_lease_s": "2s",
        "queue_poll_s": "250ms",
        "queue_scan_s": "300ms",
        "queue_batch": "100",
        "queue_back_off_s": "1m",
        "queue_attempts": "3",
        "queue_min_inactive_s": "0",
    }
    assert queue_parameters(load_settings(flags, {})) == QueueParameters(
        item_lease_ns=3 * 10**9,
        pointer_lease_ns=2 * 10**9,
        poll_ns=250 * 10**6,
        scan_ns=300 * 10**6,
        batch=100,
        back_off_ns=60 * 10**9,
        max_attempts=3,
        min_inactive_ns=0,
    )


def test_a_node_is_as_patient_with_origins_as_the_settings_have_it() -> None:
    assert origin_limits(Settings()) == Limits()
    flags = {
        "origin_timeout_s": "1m",
        "origin_silence_s": "250ms",
        "origin_minimum_bytes": "1MiB",
        "origin_attempts": "2",
        "origin_concurrency": "8",
    }
    settings = load_settings(flags, {})
    limits = Limits(timeout_s=60, silence_s=0.25, slowest=1 << 20, attempts=2, concurrency=8)
    assert origin_limits(settings) == limits
    place = OriginPlace("s3://bucket", "http://127.0.0.1:1", "auto", "key", "secret")
    origin = origin_opener(settings)(place)
    assert isinstance(origin, Resilient)
    assert origin.limits == limits


def test_a_nodes_queue_goes_by_its_settings(tmp_path: Path) -> None:
    async def main() -> None:
        flags = {"data_dir": str(tmp_path / "data"), "queue_batch": "7", "queue_workers": "31"}
        async with Node.opened(load_settings(flags, {})) as node:
            assert node.metadata.queue.parameters == QueueParameters(batch=7)
            assert node.consumer().workers == 31

    asyncio.run(main())


def test_scrubbing_can_be_turned_off() -> None:
    assert load_settings({"scrub_interval_s": "0"}, {}).scrub_interval_s == 0
    assert load_settings({}, {}).scrub_interval_s == 14 * 86400


def test_what_a_node_advertises_is_a_url_without_a_path() -> None:
    for told, kept in (
        ("http://10.0.0.1:9000/", "http://10.0.0.1:9000"),
        ("https://[2001:db8::1]:9000", "https://[2001:db8::1]:9000"),
        ("https://a.example", "https://a.example"),
    ):
        assert load_settings({"advertise": told}, {}).advertise == kept
    assert load_settings({"peer_source_address": "2001:db8:0::1"}, {}).peer_source_address == "2001:db8::1"


def test_a_node_is_reached_where_it_serves_unless_it_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peer_endpoint(Settings(host="10.0.0.1"), 9000) == "http://10.0.0.1:9000"
    assert peer_endpoint(Settings(host="::1"), 9000) == "http://[::1]:9000"
    assert peer_endpoint(Settings(host="0.0.0.0", advertise="https://a.example"), 9000) == "https://a.example"
    secure = Settings(host="::", tls_cert=Path("/c"), tls_key=Path("/k"))
    assert peer_endpoint(secure, 9000) == f"https://{primary_address()}:9000"
    with socket.socket() as listening:
        listening.bind((primary_address(), 0))  # it is an address of this machine

    def unreachable(*_: object) -> None:
        raise OSError(errno.ENETUNREACH, "no route")

    monkeypatch.setattr(socket, "socket", lambda *_: contextlib.nullcontext(SimpleNamespace(connect=unreachable)))
    assert primary_address() == "127.0.0.1"
