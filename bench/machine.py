"""The machine a measurement was taken on, and the versions that were measured."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from bench.stores import PEER_PROGRAMS


def machine() -> dict[str, str]:
    """Facts a reader needs to judge the numbers, as name -> text."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    virtual = " (virtual machine)" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    return {
        "processor": f"{os.cpu_count()} x {cpu[1] if cpu else platform.processor()}{virtual}",
        "memory": f"{int(memory[1]) / (1 << 20):.0f} GiB" if memory else "unknown",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
    }


def filesystem(path: Path) -> str:
    """Type of the file system that holds `path`."""
    found = subprocess.run(["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Versions of the stores that are installed, as they report themselves."""
    found: dict[str, str] = {}
    asked = {"seaweedfs": ("weed", "version"), "juicefs": ("juicefs", "--version"), "rclone": ("rclone", "version")}
    for name, (program, argument) in asked.items():
        path = PEER_PROGRAMS / program
        if path.exists():
            output = subprocess.run(
                [str(path), argument], capture_output=True, text=True, timeout=30, check=False
            ).stdout
            number = re.search(r"\d+\.\d+(?:\.\d+)?", output)
            found[name] = number[0] if number else "of unknown version"
    return found


def free_bytes(path: Path) -> int:
    return shutil.disk_usage(path).free
