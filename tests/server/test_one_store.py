"""No command founds a store by a slip, no key is made for one that is there, one node at a time runs on it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.nodes import running_node
from tests.server.test_cli import tigris
from tigrislike.cli import app
from tigrislike.config import Settings, load_settings
from tigrislike.server import StartError, check_files
from tigrislike.sole import Occupied, occupy

COMMANDS = [
    ["admin", "fsck"],
    ["admin", "rotate-master-key"],
    ["admin", "backup", "backup"],
    ["cache", "stat"],
    ["buckets", "set", "b", "--durability=local"],
    ["buckets", "ls"],
    ["nodes"],
    ["queue", "ls"],
    ["keys", "ls"],
    ["origin", "ls"],
    ["top", "--times=1"],
]


pytestmark = pytest.mark.sqlite  # elsewhere no file says whether there is a store


def here(*words: str) -> Result:
    """Carry out a command in this process: what `tigris` does in one of its own, and takes seconds for."""
    return CliRunner().invoke(app, words)


def files(root: Path) -> set[Path]:
    return {path for path in root.rglob("*") if "cache" not in path.relative_to(root).parts}


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: "-".join(words[:2]))
def test_a_directory_without_a_store_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here(*words, "--data-dir=data")
    assert done.exit_code == 1, done
    assert done.stderr == f"tigrislike: there is no store in {tmp_path}/data: which --data-dir is it?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A store that no node runs on."""
    data = tmp_path / "data"
    done = here("storage", "create", "bucket", f"--data-dir={data}")
    assert done.exit_code == 0, done.stderr
    return data


def test_another_cache_directory_is_not_made_by_a_check(made: Path, tmp_path: Path) -> None:
    done = here("admin", "fsck", f"--data-dir={made}", f"--cache-dir={tmp_path}/elsewhere")
    assert done.exit_code == 1
    assert "elsewhere is no cache directory: which --data-dir or --cache-dir is it?" in done.stderr
    assert not (tmp_path / "elsewhere").exists()
    done = here("admin", "fsck", f"--data-dir={made}")
    assert (done.exit_code, done.stderr) == (0, "0 findings, 0 repaired\n")


def test_a_bucket_and_the_master_key_are_changed_without_a_cache_directory(made: Path, tmp_path: Path) -> None:
    flags = (f"--data-dir={made}", f"--cache-dir={tmp_path}/elsewhere")
    done = here("buckets", "set", "bucket", "--regions=eur", *flags)
    assert done.exit_code == 0, done.stderr
    assert "regions=eur" in done.stdout
    before = (made / "master.key").read_text()
    assert here("admin", "rotate-master-key", *flags).exit_code == 0
    assert (made / "master.key").read_text() != before
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (here, ["admin", "fsck"]),
        (here, ["storage", "create", "second"]),
        (here, ["admin", "rotate-master-key"]),
        (here, ["keys", "ls"]),
        (tigris, ["serve", "--port=0", "--workers=1"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_no_key_is_made_beside_a_database(made: Path, run: Callable[..., Any], words: list[str]) -> None:
    (made / "master.key").unlink()
    before = files(made)
    done = run(*words, f"--data-dir={made}")
    assert (done.returncode if run is tigris else done.exit_code) == 1
    assert f"the master key file {made}/master.key does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(made) == before


# -- One node at a time ----------------------------------------------------------------------------------------------


def test_a_second_node_on_the_directory_is_refused_and_commands_are_not(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=1") as node:
        done = tigris("serve", "--port=0", f"--data-dir={node.data_dir}")
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"already (process {node.pid})" in done.stderr
        assert here("cache", "stat", f"--data-dir={node.data_dir}").exit_code == 0
        assert here("admin", "fsck", f"--data-dir={node.data_dir}").exit_code == 0


def test_a_node_starts_while_children_of_a_killed_one_are_left(tmp_path: Path) -> None:
    with running_node(tmp_path / "data", "--workers=1") as node:
        children = list(node.children())
        for child in children:
            os.kill(child, signal.SIGSTOP)
        try:
            os.kill(node.pid, signal.SIGKILL)
            node.process.wait(60)
            os.close(occupy(node.data_dir / "cache", patience_s=0))
        finally:
            for child in children:
                os.kill(child, signal.SIGCONT)
        with running_node(tmp_path / "data", "--workers=1") as next_node:
            assert next_node.pid != node.pid


def test_the_lock_is_waited_for_and_says_who_has_it(tmp_path: Path) -> None:
    fd = occupy(tmp_path)
    try:
        with pytest.raises(Occupied, match=rf"\(process {os.getpid()}\)"):
            occupy(tmp_path, patience_s=0)
    finally:
        os.close(fd)
    script = "import sys; from pathlib import Path; from tigrislike.sole import occupy; occupy(Path(sys.argv[1]))"
    holder = script + "; print('has it', flush=True); sys.stdin.read(1)"
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"has it\n"
        with pytest.raises(Occupied, match=rf"\(process {process.pid}\)"):
            occupy(tmp_path, patience_s=0)
        process.kill()
        os.close(occupy(tmp_path, patience_s=60))


def test_a_directory_that_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = tigris("serve", "--port=0", f"--data-dir={tmp_path}/file/data")
    assert done.returncode == 1
    assert done.stderr.startswith("tigrislike: cannot open the store: ")
    assert done.stderr.count("\n") == 1


# -- Files that the settings name ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"tls_cert": "none.pem", "tls_key": "text"}, "--tls-cert none.pem: No such file or directory"),
        ({"tls_cert": "text", "tls_key": "text"}, "--tls-cert text with --tls-key text: "),
        ({"metrics_auth": "none"}, "--metrics-auth none: No such file or directory"),
        ({"access_log": "none/log"}, "--access-log none/log: No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text("no certificate\n")
    with pytest.raises(StartError) as refusal:
        check_files(load_settings(flags, {}, None))
    assert str(refusal.value).startswith(says)
    assert "\n" not in str(refusal.value)


def test_a_node_whose_files_cannot_be_used_says_one_line_and_makes_nothing(tmp_path: Path) -> None:
    done = tigris("serve", "--port=0", "--metrics-auth=none", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "tigrislike: --metrics-auth none: No such file or directory\n"
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_for_the_access_log_is_not_opened_before_it_is_used(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    check_files(Settings(data_dir=tmp_path / "data", access_log=str(tmp_path / "pipe")))
    with pytest.raises(StartError, match="--access-log"):
        check_files(Settings(data_dir=tmp_path / "data", access_log=str(tmp_path)))
