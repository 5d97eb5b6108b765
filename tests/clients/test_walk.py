"""The README's first pages, as a newcomer follows them: `make run` in a fresh copy of the repository, then the section
"A walk" in another shell with nothing but the exports that were printed.

The README is the source: its code blocks are what runs here, so that it cannot come to say what does not work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from tests.clients.environments import REPOSITORY, prepared

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

MIB = 1024 * 1024
INSTALL_TIMEOUT_S = 900
EXPORTS = ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION"]
# What a shell of a new user has. PIP_* say where packages come from here.
SHELL = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR") or name.startswith("PIP_")}


def section(title: str) -> str:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", readme, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title!r}"
    return found[1]


def commands(title: str) -> list[str]:
    """The blocks of shell commands of a section, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's files as they are now, and nothing that was built from them but the clients' environments."""
    if shutil.which("git") is None:
        pytest.skip("no git: it says which files are the repository's")
    directory = tmp_path_factory.mktemp("walk") / "tigrislike"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        with contextlib.suppress(FileNotFoundError):  # deleted, and not yet committed so
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, directory / name)
    if reason := prepared(".venvs/walk"):
        pytest.skip(reason)
    (directory / ".venvs").symlink_to(REPOSITORY / ".venvs")
    # The two steps that need a package index are taken first: without one nothing of the walk can be shown.
    install = next(line for line in commands("A walk")[0].splitlines() if line.startswith("pip install"))
    for step in ("make .venv/.installed", f".venvs/walk/bin/{install}"):
        made = subprocess.run(
            ["bash", "-c", step],
            cwd=directory,
            env=SHELL | {"HOME": os.environ.get("HOME", str(directory))},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_TIMEOUT_S,
        )
        if made.returncode:
            errors = [line for line in made.stderr.splitlines() if line.startswith("ERROR")] or [made.stderr.strip()]
            pytest.skip(f"{step} failed: {errors[-1]}")
    return directory


@pytest.fixture(scope="module")
def exports(copy: Path) -> Iterator[dict[str, str]]:
    """What `make run` prints for pasting, while it runs."""
    [run] = [block.strip() for block in commands("A working bucket in two commands") if block.startswith("make run")]
    with (copy.parent / "run.log").open("wb") as log:
        process = subprocess.Popen(
            [*run.split(), "PORT=0"],
            cwd=copy,
            env=SHELL | {"HOME": str(copy.parent)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield _printed(process)
        os.killpg(process.pid, signal.SIGINT)  # Ctrl-C
        process.wait(60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _printed(process: subprocess.Popen[bytes]) -> dict[str, str]:
    """The variables of the `export` lines, as a shell that they are pasted into has them."""
    assert process.stdout is not None
    output = b""
    deadline = time.monotonic() + 120
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while b"export AWS_REGION=auto\n" not in output:
            assert selector.select(deadline - time.monotonic()), output
            read = os.read(process.stdout.fileno(), 65536)
            assert read, output
            output += read
    lines = [line for line in output.decode().splitlines() if line.startswith("export ")]
    return dict(line.removeprefix("export ").split("=", 1) for line in lines)


def test_the_walk(copy: Path, exports: dict[str, str], tmp_path: Path) -> None:
    blocks = commands("A walk")
    script = "".join(f"echo '=== {number}'\n{block}" for number, block in enumerate(blocks)) + "\necho '==='; pwd\n"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=copy,
        env=SHELL | {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)} | exports,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, files, link, large, weights, directory = re.split(r"^===.*\n", done.stdout, flags=re.MULTILINE)
    assert "notes/one.txt" in files
    assert files.endswith("the second note\n")
    assert link.strip() == "the second note"
    assert large.endswith("the same 300 MiB\n")
    assert weights.splitlines() == [f"{name} byte-identical" for name in ("s3fs", "pyarrow", "obstore")]

    # What the commands said is looked at from outside too.
    s3 = boto3.client(
        "s3",
        endpoint_url=exports["AWS_ENDPOINT_URL"],
        aws_access_key_id=exports["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=exports["AWS_SECRET_ACCESS_KEY"],
        region_name="auto",
    )
    sizes = {entry["Key"]: entry["Size"] for entry in s3.list_objects_v2(Bucket="walk")["Contents"]}
    assert sizes == {
        "all-MiniLM-L6-v2/model.safetensors": 90868376,
        "big.bin": 300 * MIB,
        "notes/three.txt": len("the second note\n"),
    }
    assert "-" in s3.head_object(Bucket="walk", Key="big.bin")["ETag"]
    kept = hashlib.file_digest(s3.get_object(Bucket="walk", Key="big.bin")["Body"], "sha256")
    with (Path(directory.strip()) / "big.bin").open("rb") as file:
        assert kept.digest() == hashlib.file_digest(file, "sha256").digest()
    s3.close()


def test_what_is_printed_is_what_the_readme_shows(exports: dict[str, str]) -> None:
    shown = re.findall(r"^export (\w+)=", section("A working bucket in two commands"), re.MULTILINE)
    assert list(exports) == shown
    assert set(EXPORTS) <= set(shown)
