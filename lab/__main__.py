"""`python -m lab`: three regions on this machine, and a walk through what distance costs and what it does not."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

from lab.regions import LabError, Regions
from lab.walk import REPLICATE_AFTER, Walk
from tigrislike.metadata.kv import EngineUnavailable


def main() -> int:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as Ctrl-C: everything is stopped on the way out
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tigrislike-lab-") as directory:
        try:
            with Regions(Path(directory), *_flags(), cluster_file=arguments.fdb) as regions:
                _say(f"Three regions, 80 ms apart; the database is in a. Logs: {directory}/*.log")
                walk = Walk(
                    regions,
                    _say,
                    objects=200 if arguments.quick else 1000,
                    bytes_per_s=arguments.rate * 1e6,
                    within_s=20 if arguments.quick else 60,
                )
                figures = walk.run()
                figures["wall_s"] = time.monotonic() - began_s
                _say(f"\nWhere bytes went:\n\n{walk.draw()}\n")
                if arguments.json is not None:
                    arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
                if arguments.keep:
                    _keep(regions)
        except (LabError, EngineUnavailable) as error:
            print(f"lab: {error}", file=sys.stderr)
            for log in sorted(Path(directory).glob("*.log")):
                print(f"--- {log.name}\n{log.read_text()[-1500:]}", file=sys.stderr)
            return 1
        except PermissionError as error:
            print(
                f"lab: {error}: network namespaces are root's to make (or: unshare -r python -m lab)", file=sys.stderr
            )
            return 1
        except KeyboardInterrupt:
            _say("\nStopped.")
            return 130
    return 0


def _flags() -> list[str]:
    return ["--workers=1", f"--replicate-after={REPLICATE_AFTER}", "--access-log=off", "--log-level=warning"]


def _keep(regions: Regions) -> None:
    """Leave everything running until Ctrl-C, which ends it here and does not end the program otherwise."""
    for node in regions.nodes.values():
        _say(f"region {node.region}: export AWS_ENDPOINT_URL={node.endpoint}")
    keys = regions.nodes["a"].facts
    _say(
        f"export AWS_ACCESS_KEY_ID={keys['access_key_id']} AWS_SECRET_ACCESS_KEY={keys['secret_access_key']} "
        "AWS_DEFAULT_REGION=auto\nCtrl-C stops everything."
    )
    signal.pause()


def _say(text: str) -> None:
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lab", description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--quick", action="store_true", help="fewer objects: under a minute")
    parser.add_argument("--fdb", type=Path, metavar="FILE", help="metadata in this FoundationDB cluster, not in SQLite")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--keep", action="store_true", help="then leave it running, with the endpoints printed")
    parser.add_argument(
        "--rate", type=float, default=5.0, metavar="MB/S", help="of each wire while objects converge (default: 5)"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
