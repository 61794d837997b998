"""Give mutated inputs to every target, and report what is no orderly refusal.

    python -m tests.fuzz.run                                # 120,000 inputs
    python -m tests.fuzz.run --seconds 120 --target plan    # one target, two minutes

An input fails its target if anything but CompressorError comes out, if it takes more than ten
seconds of CPU time or two minutes in all, or if the process would grow by more than two GiB.
Failing inputs are kept in tests/fuzz/crashes.
"""

from __future__ import annotations

import argparse
import atexit
import faulthandler
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from types import FrameType

from tests.fuzz.mutations import mutated
from tests.fuzz.targets import CHEAP, FOLDER, TABLES, TARGETS, Target, attempt

CORPUS = Path(__file__).parent / "corpus"
CRASHES = Path(__file__).parent / "crashes"
INPUTS = 120_000
TABLE_SHARE = 0.005
"""Share of the inputs that go to targets through a library's cache, which are slow."""

LONGEST = 10
LONGEST_WAIT = 120
MEMORY = 2 << 30


class TooSlowError(Exception):
    """An input took more than `LONGEST` seconds of CPU time, or waited longer than any should."""


def fuzz(
    name: str, inputs: int, *, seed: int, until: float, crashes: Path = CRASHES
) -> tuple[Counter[str], list[Path]]:
    """Give mutations of a target's corpus to it.

    Args:
        name: The target.
        inputs: How many.
        seed: Seed of the mutations.
        until: Time (monotonic) at which to stop.
        crashes: Where failing inputs are kept.

    Returns:
        How many were read or refused, by the kind of refusal, and the failing inputs.
    """
    target = TARGETS[name]
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    rng = random.Random(f"{seed} {name}")
    counts: Counter[str] = Counter()
    failing: list[Path] = []
    for number in range(inputs):
        if time.monotonic() > until:
            break
        chosen = rng.choice(corpus)
        data = chosen if number < len(corpus) else mutated(chosen, rng, corpus)
        problem = failure(target, data, counts)
        if problem is None:
            continue
        counts["failed"] += 1
        path = crashes / name / hashlib.sha256(data).hexdigest()[:16]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        if not failing:
            print(f"{name}: {path}\n{problem}", file=sys.stderr)
        failing.append(path)
    return counts, failing


def failure(target: Target, data: bytes, counts: Counter[str]) -> str | None:
    """Return the traceback of an input that is not read or refused in time, or None."""
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    signal.alarm(LONGEST_WAIT)
    try:
        counts[attempt(target, data) or "read"] += 1
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return None


def catch_slow() -> None:
    """Have an input that takes too long end in an error."""

    def slow(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise TooSlowError(f"more than {LONGEST} s")

    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, slow)


def limit() -> None:
    """Bound the memory that this process may grow by, and the time of an input."""
    catch_slow()
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        bound = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main() -> int:
    """Run the targets and print their counts; returns 1 if an input failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=INPUTS, help=f"in all ({INPUTS:,})")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="this one alone")
    options = parser.parse_args()
    faulthandler.enable()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
    names = [options.target] if options.target else list(TARGETS)
    for name in names:  # what targets import is there before memory is bounded
        corpus = sorted((CORPUS / name).iterdir())
        attempt(TARGETS[name], corpus[0].read_bytes())
    limit()
    end = time.monotonic() + options.seconds
    total, failed = 0, 0
    for place, name in enumerate(names):
        share = TABLE_SHARE / len(TABLES) if name in TABLES else (1 - TABLE_SHARE) / len(CHEAP)
        inputs = options.inputs if options.target else round(options.inputs * share)
        left = max(end - time.monotonic(), 0) / (len(names) - place)
        started = time.monotonic()
        counts, failing = fuzz(name, inputs, seed=options.seed, until=started + left)
        done = sum(counts.values())
        total, failed = total + done, failed + len(failing)
        listed = ", ".join(f"{kind} {count:,}" for kind, count in counts.most_common())
        print(f"{name:<12} {done:>8,} in {time.monotonic() - started:5.1f} s: {listed}", flush=True)
    print(f"{total:,} inputs, {failed} failed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
