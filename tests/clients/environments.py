"""Client programs, each in the environment that `make .venvs/CLIENT` makes from `requirements-CLIENT.txt`.

A client runs as a process of its own with what a user's shell would have and no more: a PATH, a home directory of the
test's, and the variables that the node tells its user to export. So no setting of the machine that runs the tests can
make a client work, or fail.
"""

from __future__ import annotations

import ast
import fcntl
import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.nodes import RunningNode

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("programs")
PREPARE_TIMEOUT_S = 600.0


@functools.cache
def prepared(target: str) -> str:
    """Make one target of the Makefile, once a session; the reason why it could not be made, or ""."""
    # What an outer make passes down is about its own run: its jobs, its flags.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    try:
        with (REPOSITORY / "Makefile").open() as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)  # tests run in several processes, which share the environments
            made = subprocess.run(
                ["make", "--no-print-directory", target],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PREPARE_TIMEOUT_S,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"make {target}: {error}"
    lines = [line for line in made.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
    return f"make {target} failed: {errors[-1]}" if made.returncode else ""


@dataclass
class Client:
    """A client program ready to run against a node.

    Attributes:
        directory: where its commands run; also its home.
        variables: environment variables it runs with, besides PATH and HOME.
    """

    name: str
    node: RunningNode
    directory: Path
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def bin(self) -> Path:
        return REPOSITORY / ".venvs" / self.name / "bin"

    def start(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command; its output is one stream. The caller waits for it."""
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env={
                "PATH": f"{self.bin}:{os.environ['PATH']}",
                "HOME": str(self.directory),
                "LC_ALL": "C.UTF-8",
                **self.variables,
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def attempt(
        self, *command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 240
    ) -> tuple[int, str]:
        """Run a command to its end; exit status, and what it printed on either stream."""
        with self.start(*command, environment=environment) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                output, _ = process.communicate()
                raise AssertionError(f"{command} did not end:\n{output.decode(errors='replace')}") from None
        return process.returncode, output.decode(errors="replace")

    def run(self, *command: str, environment: Mapping[str, str] | None = None, timeout_s: float = 240) -> str:
        """Run a command that must succeed; what it printed."""
        status, output = self.attempt(*command, environment=environment, timeout_s=timeout_s)
        assert status == 0, f"{' '.join(command)} ended with {status}:\n{output}\n{self.node.log.read_text()[-2000:]}"
        return output

    def case(self, program: str, case: str, *arguments: str, timeout_s: float = 240) -> str:
        """Run one function of a file of `programs/` with the client's own Python."""
        command = ("python", "-W", "error::ResourceWarning", str(PROGRAMS / program), case, *arguments)
        return self.run(*command, timeout_s=timeout_s)


def client(name: str, node: RunningNode, directory: Path, **variables: str) -> Client:
    """A client with its environment made; skips the test where that cannot be.

    Args:
        variables: added to the node's exports.
    """
    if reason := prepared(f".venvs/{name}"):
        pytest.skip(reason)
    exports = dict(node.exports)
    if node.ca_bundle:
        # Programs in Go and Rust take the authorities to trust from here.
        exports["SSL_CERT_FILE"] = node.ca_bundle
    return Client(name, node, directory, exports | variables)


def cases(program: str) -> list[str]:
    """The public functions of a file of `programs/`, in their order, without importing it."""
    tree = ast.parse((PROGRAMS / program).read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
