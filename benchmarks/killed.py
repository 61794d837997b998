"""Kill a run by SIGKILL at random moments, resume it, and compare the checkpoints bit for bit.

    python -m benchmarks.killed compress MODEL --data DATA --budget layers=50% --root DIR

Everything after the options of this script is a command line of compressor, without --out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from compressor.cli import main as compressor

FILES = ("model.safetensors", "plan.json")


def start(words: list[str], log: Path) -> int:
    """Run a command in a forked child, which has everything imported already; return its id."""
    child = os.fork()
    if child:
        return child
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        os._exit(compressor(words))


def finished(child: int) -> int:
    """Wait for a child and return its exit code; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def contents(directory: Path) -> tuple[bytes, ...]:
    """Return what has to be the same to the last bit."""
    return tuple((directory / name).read_bytes() for name in FILES)


def main() -> int:
    """Return 0 if every resumed run wrote what an undisturbed one writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="a directory to work in")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given, words = parser.parse_known_args()
    given.root.mkdir(parents=True, exist_ok=True)
    log, plain = given.root / "log.txt", given.root / "plain"
    began = time.monotonic()
    if code := finished(start([*words, "--out", str(plain)], log)):
        sys.exit(f"the undisturbed run ended with {code}; see {log}")
    seconds = time.monotonic() - began
    draw, alike, moments = random.Random(given.seed), 0, []
    for number in range(given.kills):
        out = given.root / f"killed-{number}"
        command = [*words, "--out", str(out), "--resume"]
        child, moment = start(command, log), draw.uniform(0, seconds)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        killed, kept = finished(child) == -signal.SIGKILL, (given.root / f".{out.name}.resume")
        entries = sum(not p.name.startswith(".") for p in kept.iterdir()) if kept.exists() else 0
        code = finished(start(command, log))
        same = code == 0 and contents(out) == contents(plain)
        left = [path.name for path in given.root.iterdir() if path.name.startswith(f".{out.name}")]
        alike += same and not left
        moments.append(
            {
                "second": round(moment, 2),
                "killed": killed,
                "entries_kept": entries,
                "identical": same,
                "left_over": left,
            }
        )
    print(json.dumps({"seconds_undisturbed": round(seconds, 2), "kills": moments}, indent=2))
    print(f"{alike} of {given.kills} identical", file=sys.stderr)
    return 0 if alike == given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
