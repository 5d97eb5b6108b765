"""The Dockerfile and the compose file say only what exists: settings, commands, paths, ports, one FoundationDB version.

No container is run here. What the files run is run, though, wherever it needs no container: the health check against a
node, the scripts of the one-shot services with a stand-in for `fdbcli`, the check of the client library at build time.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from tests.bench.scripted_server import answer, serve
from tests.nodes import RunningNode
from tigrislike.config import Settings, load_settings, options, unknown_variables
from tigrislike.metadata.secrets import MasterKey

REPOSITORY = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NODES = ["east", "west", "origin", "alone"]
SHARED = ["east", "west"]
FOUNDATIONDB = ["foundationdb", "foundationdb-init"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and what follows each."""
    text = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def instruction(name: str) -> str:
    found = [rest for word, rest in instructions() if word == name]
    return found[-1]


def image_environment() -> dict[str, str]:
    """The image's own environment: ENV of its last stage."""
    last = max(at for at, (word, _) in enumerate(instructions()) if word == "FROM")
    pairs = [pair for word, rest in instructions()[last:] if word == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def interpolated(value: Any) -> str:
    """A value with `${NAME:-default}` replaced by the default, as with nothing set, and `$$` by `$`."""
    text = re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", str(value))
    assert not re.search(r"(?<!\$)\$(?!\$)", text), f"{value!r} has a variable without a default"
    return text.replace("$$", "$")


def environment(service: str) -> dict[str, str]:
    """What a container of this service finds in its environment."""
    own = {name: interpolated(value) for name, value in SERVICES[service].get("environment", {}).items()}
    return own if service in FOUNDATIONDB else {**image_environment(), **own}


def mounts(service: str) -> dict[str, str]:
    """Path in the container -> name of the volume."""
    split = [mount.split(":") for mount in SERVICES[service].get("volumes", [])]
    return {parts[1]: parts[0] for parts in split}


def settings(service: str) -> Settings:
    return load_settings({}, environment(service))


# -- Settings and paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", NODES)
def test_every_variable_is_a_setting_that_can_be_used(service: str) -> None:
    variables = environment(service)
    assert unknown_variables(variables) == []
    known = {option.variable for option in options()}
    assert {name for name in variables if name.startswith("TIGRISLIKE_")} <= known
    assert settings(service).host == "0.0.0.0", "reachable from outside its container"


@pytest.mark.parametrize("service", NODES)
def test_everything_that_a_node_keeps_is_in_a_volume(service: str) -> None:
    kept = settings(service)
    paths = [kept.data_dir, kept.cache_dir, *filter(None, [kept.sqlite_path, kept.master_key_path])]
    for path in paths:
        assert any(PurePosixPath(path).is_relative_to(mount) for mount in mounts(service)), path


def test_nodes_share_the_database_and_the_master_key_and_nothing_else() -> None:
    east, west = (settings(service) for service in SHARED)
    assert east.region != west.region
    assert (east.metadata, east.master_key_path) == (west.metadata, west.master_key_path)
    shared = set(mounts("east").values()) & set(mounts("west").values())
    assert shared == {"cluster", "keys"}
    for service in SHARED:
        for path in ("/etc/foundationdb", "/keys"):
            assert f"{mounts(service)[path]}:{path}:ro" in SERVICES[service]["volumes"]


def test_nodes_and_cluster_mean_one_cluster_file() -> None:
    for service in FOUNDATIONDB:
        file = environment(service)["FDB_CLUSTER_FILE"]
        assert settings("east").metadata == f"fdb://{file}"
        assert mounts(service)[str(PurePosixPath(file).parent)] == "cluster" == mounts("east")["/etc/foundationdb"]
    contents = environment("foundationdb")["FDB_CLUSTER_FILE_CONTENTS"]
    host, port = re.fullmatch(r"\w+:\w+@([\w-]+):(\d+)", contents).groups()  # type: ignore[union-attr]
    assert host in SERVICES
    assert port == environment("foundationdb")["FDB_PORT"]


def test_volumes_services_and_ports_fit_together() -> None:
    used = {volume for service in SERVICES for volume in mounts(service).values()}
    assert used == set(COMPOSE["volumes"])
    for service in SERVICES.values():
        for dependency, wait in service.get("depends_on", {}).items():
            ends = wait["condition"] == "service_completed_successfully"
            assert ends == (SERVICES[dependency].get("restart", "no") == "no")
    published = [port.split(":")[0] for name in ("east", "west", "origin") for port in SERVICES[name]["ports"]]
    assert len(set(published)) == len(published)
    for service in NODES:
        assert {int(port.split(":")[1]) for port in SERVICES[service]["ports"]} == {settings(service).port}
        assert f"{settings(service).port}" == instruction("EXPOSE")
    assert {service for service in SERVICES if SERVICES[service].get("profiles")} == {"origin", "alone"}


def test_a_container_is_given_longer_to_stop_than_a_node_takes() -> None:
    for service in NODES:
        grace = re.fullmatch(r"(\d+)s", SERVICES[service]["stop_grace_period"])
        assert grace is not None
        assert int(grace[1]) > settings(service).drain_timeout_s


# -- The image -------------------------------------------------------------------------------------------------------


def test_the_image_is_made_of_files_that_there_are() -> None:
    let_in = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (REPOSITORY / source).exists()
                assert f"!{source.removeprefix('./')}" in let_in
    stages = {rest.rpartition(" AS ")[2] for word, rest in instructions() if word == "FROM" and " AS " in rest}
    used = {rest.split()[0].removeprefix("--from=") for word, rest in instructions() if rest.startswith("--from=")}
    assert used == stages


def test_what_the_image_runs_is_a_command() -> None:
    command = json.loads(instruction("ENTRYPOINT")) + json.loads(instruction("CMD"))
    assert command == ["tigrislike", "serve"]
    done = subprocess.run([sys.executable, "-m", *command, "--help"], capture_output=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0, done.stderr


def health(**variables: str) -> int:
    """How the health check ends in a container with these variables beside the image's own."""
    command, *arguments = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
    assert command == "python"
    environment = {**image_environment(), **variables}
    return subprocess.run([sys.executable, *arguments], capture_output=True, env=environment, timeout=60).returncode


def test_the_health_check_asks_the_node_where_the_variables_say_that_it_is(
    either_store: RunningNode, certificate: tuple[Path, Path, Path]
) -> None:
    tls = {"TIGRISLIKE_TLS_CERT": str(certificate[0])} if either_store.ca_bundle else {}
    proxy = {"http_proxy": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    assert health(TIGRISLIKE_PORT=str(either_store.port), **tls, **proxy) == 0
    assert health(TIGRISLIKE_PORT="1", **tls) == 1


def test_a_node_that_is_not_ready_is_not_healthy() -> None:
    for status, expected in (("200 OK", 0), ("503 Service Unavailable", 1)):
        with serve([answer(b"{}", status)]) as server:
            assert health(TIGRISLIKE_PORT=str(server.port)) == expected
        assert server.requests[0][0].startswith(b"GET /readyz HTTP/1.1\r\n")


def test_without_a_port_the_health_check_asks_at_the_default_one() -> None:
    assert f"os.environ.get('TIGRISLIKE_PORT') or {Settings().port};" in instruction("HEALTHCHECK")


def test_one_version_of_foundationdb_in_all_files() -> None:
    versions = {
        "Dockerfile": re.findall(r"^ARG FDB_VERSION=(\S+)$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE),
        "docs": re.findall(r"foundationdb/foundationdb:(\S+?)`", (REPOSITORY / "docs" / "foundationdb.md").read_text()),
        "compose": [interpolated(SERVICES[name]["image"]).rpartition(":")[2] for name in FOUNDATIONDB]
        + [interpolated(SERVICES[name]["build"]["args"]["FDB_VERSION"]) for name in [*NODES, "master-key"]],
    }
    assert all(versions.values())
    assert len({version for found in versions.values() for version in found}) == 1, versions
    assert versions["Dockerfile"][0].startswith("7.3.")
    assert {rest for word, rest in instructions() if word == "FROM" and "foundationdb" in rest} == {
        "foundationdb/foundationdb:${FDB_VERSION} AS foundationdb"
    }


@pytest.mark.fdb
def test_the_check_at_build_time_passes_where_the_library_is() -> None:
    done = subprocess.run(
        ["bash", "-c", _build_check().replace("python ", f"{shlex.quote(sys.executable)} ", 1)],
        capture_output=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_check_at_build_time_fails_where_the_library_is_not() -> None:
    """With an empty library in its place, the build must end there."""
    program = shlex.split(_build_check())[-1]
    hide = "import ctypes; ctypes.CDLL = lambda *_: (_ for _ in ()).throw(OSError('hidden')); "
    done = subprocess.run([sys.executable, "-c", hide + program], capture_output=True, cwd=REPOSITORY, timeout=60)
    assert done.returncode != 0
    assert b"foundationdb-clients" in done.stderr, done.stderr


def _build_check() -> str:
    [check] = [rest for word, rest in instructions() if word == "RUN" and "load_binding" in rest]
    return check.removeprefix("ldconfig && ")


# -- The scripts of the one-shot services ------------------------------------------------------------------------------


def script(service: str) -> list[str]:
    entrypoint = SERVICES[service]["entrypoint"]
    assert entrypoint == ["/bin/bash", "-c"]
    [text] = SERVICES[service]["command"]
    return ["bash", "-c", interpolated(text)]


def test_the_master_key_is_made_once_and_is_one(tmp_path: Path) -> None:
    command = [word.replace("/keys/", f"{tmp_path}/") for word in script("master-key")]
    made = []
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        made.append((tmp_path / "master.key").read_bytes())
    assert made[0] == made[1]
    assert [path.name for path in tmp_path.iterdir()] == ["master.key"]
    assert (tmp_path / "master.key").stat().st_mode & 0o777 == 0o600
    MasterKey.load(None, tmp_path / "master.key", create=False)


def _init(tmp_path: Path, fdbcli: str) -> tuple[subprocess.CompletedProcess[bytes], str]:
    """Run the init script with `fdbcli` a script that notes how it was called; how it ended, and the calls."""
    calls = tmp_path / "calls"
    calls.touch()
    for name, text in {"fdbcli": f'echo "$@" >> {calls}\n{fdbcli}', "sleep": f"echo sleep >> {calls}"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(script("foundationdb-init"), capture_output=True, env={"PATH": path}, timeout=60)
    return done, calls.read_text()


def test_a_cluster_without_a_database_is_given_one(tmp_path: Path) -> None:
    made = tmp_path / "made"
    done, calls = _init(
        tmp_path,
        f"""case "$*" in
          *configure*) touch {made} ;;
          *) if [ -e {made} ]; then echo 'The database is available.'; else exit 1; fi ;;
        esac""",
    )
    assert done.returncode == 0
    assert calls.count("configure new single ssd") == 1
    assert "sleep" not in calls


def test_a_cluster_with_a_database_is_left_as_it_is(tmp_path: Path) -> None:
    done, calls = _init(tmp_path, "echo 'The database is available, but has issues (type status).'")
    assert done.returncode == 0
    assert "configure" not in calls


def test_a_cluster_that_does_not_come_up_is_given_up_on(tmp_path: Path) -> None:
    done, calls = _init(tmp_path, "exit 1")
    assert done.returncode == 1
    assert b"docker compose logs foundationdb" in done.stderr
    assert calls.count("sleep") == 30


def test_the_clusters_health_check_tells_available_from_not(tmp_path: Path) -> None:
    check = interpolated(SERVICES["foundationdb"]["healthcheck"]["test"])
    for said, status in (("The database is available.", 0), ("The database is unavailable; type `status'", 1)):
        (tmp_path / "fdbcli").write_text(f"#!/bin/bash\necho {shlex.quote(said)}\n")
        (tmp_path / "fdbcli").chmod(0o755)
        done = subprocess.run(["sh", "-c", check], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, timeout=60)
        assert done.returncode == status
