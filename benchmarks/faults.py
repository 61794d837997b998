"""Kills and faults at random and at every step of saving: is anything lost or half-written?

    python -m benchmarks.faults                # 240 trials, about five minutes on one core
    python -m benchmarks.faults --trials 40 --seed 7 --json

Half of the trials compress the network of examples/plain_cnn.py, half save a small one, each in a
process of its own that is forked from this warm one, and are ended in one of these ways:

    SIGKILL, SIGTERM, SIGINT at a random moment, or before a random file operation
    a disk that is full from a random operation on, or after a random number of bytes in a file
    a memory limit; the directory above the output removed; a second process with the same --out

Afterwards the output has to be absent, or complete by its own hashes, or the earlier one to the
last byte; the inputs what they were; nothing left beside the output but by SIGKILL, where the next
run has to remove it; no traceback; and no process that hangs.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 120.0
PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Where trials write: in memory, as a disk would be waited for at every file."""

RUN = os.getpid()
"""Process that runs the trials; those forked from it keep this number."""

NETWORK = Path(__file__).parents[1] / "examples" / "plain_cnn.py"
EVENTS = frozenset(
    ("open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.chmod", "os.listdir",
     "os.scandir", "shutil.rmtree", "shutil.copyfile", "tempfile.mkdtemp")
)  # fmt: skip
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "SIGINT": signal.SIGINT}
EXPECTED = {0, 1, 2, 128 + signal.SIGINT, 128 + signal.SIGTERM}

Work = Callable[[Path], int]
"""Writes its result to a path, and returns an exit code."""


@dataclass(frozen=True)
class Fault:
    """How a trial is disturbed.

    Args:
        name: ``SIGKILL``, ``SIGTERM``, ``SIGINT``, ``full disk``, ``file size``, ``memory``,
            ``removed`` or ``two writers``.
        step: File operation below the trial's directory before which it happens; None for a
            random moment.
        delay: Seconds after the start, where there is no step.
        limit: Bytes, of a file or of memory.
    """

    name: str
    step: int | None = None
    delay: float | None = None
    limit: int | None = None


@dataclass
class Trial:
    """What came of one fault."""

    fault: Fault
    code: int
    outcome: str
    problems: list[str]


def run_trial(work: Work, fault: Fault, root: Path, inputs: list[Path]) -> Trial:
    """Disturb ``work`` in a process of its own, and look at what it leaves.

    Args:
        work: What is disturbed.
        fault: How.
        root: A directory of one's own; an earlier output may lie in ``root/place/out``.
        inputs: Files that may not change.
    """
    out = root / "place" / "out"
    out.parent.mkdir(parents=True, exist_ok=True)
    before, given = digests(out), [digests(path) for path in inputs]
    children = [start(work, fault, out, root / "log")]
    if fault.name == "two writers":
        children.append(start(work, Fault("none"), out, root / "log2"))
    if fault.delay is not None:
        time.sleep(fault.delay)
        os.kill(children[0], SIGNALS[fault.name])
    codes = [wait(child) for child in children]
    problems = [f"exit code {code}" for code in codes if not allowed(code, fault)]
    if any("Traceback" in log.read_text(errors="replace") for log in root.glob("log*")):
        problems.append("a traceback: " + (root / "log").read_text(errors="replace")[-2000:])
    if [digests(path) for path in inputs] != given:
        problems.append("an input has changed")
    outcome = judged(out, before, fault, problems)
    return Trial(fault, codes[0], outcome, problems)


def judged(out: Path, before: dict[str, str], fault: Fault, problems: list[str]) -> str:
    """Return what lies at the output, and add to ``problems`` what may not be."""
    after = digests(out)
    if not after:
        outcome = "absent"
        if before and fault.name != "removed":
            problems.append("the earlier output is gone")
    elif after == before:
        outcome = "as before"
    else:
        outcome = "complete"
        problems += incomplete(out)
    left = [path.name for path in siblings(out)]
    if left and fault.name != "SIGKILL":
        problems.append(f"left behind: {left}")
    if left:
        from compressor.checkpoint.whole import remove_leftovers

        remove_leftovers(out)
        if siblings(out):
            problems.append(f"not removed afterwards: {left}")
    return outcome


def incomplete(out: Path) -> list[str]:
    """Return what is missing or damaged in a directory, by its own record."""
    from compressor.checkpoint.integrity import NAME, read_integrity, record_of

    if out.is_file():
        return [] if json.loads(out.read_text()) else ["an empty file"]
    record = read_integrity(out)
    if record is None:
        return [f"{NAME} is missing"]
    present = {path.name for path in out.iterdir()} - {NAME}
    if present != record.files.keys():
        return [f"files are {sorted(present)}, recorded were {sorted(record.files)}"]
    return [f"{n} is damaged" for n, found in record.files.items() if record_of(out / n) != found]


def siblings(out: Path) -> list[Path]:
    """Return what lies beside the output."""
    return [path for path in out.parent.iterdir() if path != out] if out.parent.is_dir() else []


def digests(path: Path) -> dict[str, str]:
    """Return the hash of a file, or of every file of a directory."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file() and "__pycache__" not in file.parts
    }


def allowed(code: int, fault: Fault) -> bool:
    """Return whether a fault may end a process so."""
    if fault.delay is not None and code == -SIGNALS[fault.name]:
        return True  # it arrived before the program listened
    return code in EXPECTED or (fault.name == "SIGKILL" and code == -signal.SIGKILL)


def start(work: Work, fault: Fault, out: Path, log: Path) -> int:
    """Fork a process that works under a fault; its words go to ``log``."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        prepare(fault, out.parent)
        code = work(out)
    except BaseException as error:
        print("Traceback, uncaught:", type(error).__name__, error, file=sys.stderr)
    finally:
        os._exit(code)


def prepare(fault: Fault, root: Path) -> None:
    """Set limits, or have the fault happen before its file operation."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells may have it ignored
    if fault.name == "file size" and fault.limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.limit, fault.limit))
    if fault.name == "memory" and fault.limit is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + fault.limit
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if fault.step is not None:
        sys.addaudithook(disturbing(fault, root))


def disturbing(fault: Fault, root: Path) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that acts at the fault's operation below ``root``."""
    state = {"count": 0, "busy": False}
    assert fault.step is not None

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if state["busy"] or event not in EVENTS or not below(args, root):
            return
        state["count"] += 1
        reached = state["count"] - 1 - (fault.step or 0)
        if fault.name == "full disk" and reached >= 0 and writes(event, args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
        if reached == 0 and fault.name in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault.name])
        if reached == 0 and fault.name == "removed":
            state["busy"] = True
            shutil.rmtree(root, ignore_errors=True)
            state["busy"] = False

    return hook


def below(args: tuple[Any, ...], root: Path) -> bool:
    """Return whether an operation's path lies below ``root``."""
    paths = [os.fsdecode(a) for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
    return any(path.startswith(str(root)) for path in paths)


def writes(event: str, args: tuple[Any, ...]) -> bool:
    """Return whether an operation needs room on the disk."""
    if event == "open":
        return bool((args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in ("os.mkdir", "tempfile.mkdtemp", "shutil.copyfile")


def wait(child: int) -> int:
    """Wait for a process and return its exit code, minus the signal's number where one ended it."""
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1000  # it hung


def count_steps(work: Work, root: Path) -> tuple[int, float]:
    """Return how many file operations undisturbed work takes below its directory, and seconds."""
    log = root / "steps"
    place = root / "place"
    place.mkdir(parents=True)

    def counted(out: Path) -> int:
        steps = {"count": 0}

        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in EVENTS and below(args, place):
                steps["count"] += 1

        sys.addaudithook(hook)
        code = work(out)
        log.write_text(str(steps["count"]))
        return code

    started = time.monotonic()
    code = wait(start(counted, Fault("none"), place / "out", root / "log"))
    seconds = time.monotonic() - started
    if code != 0:
        raise SystemExit(f"The undisturbed run failed:\n{(root / 'log').read_text()}")
    return int(log.read_text()), seconds


def network() -> Path:
    """Return a copy of the network's file that nothing else works on while trials run."""
    place = Path(tempfile.gettempdir()) / f"faults-network-{os.getuid()}-{RUN}"
    if not place.exists():
        place.mkdir()
        shutil.copyfile(NETWORK, place / NETWORK.name)
    return place / NETWORK.name


def compressing(out: Path) -> int:
    """Compress a small network, with the smallest limits that work."""
    from compressor.cli import main

    words = ["compress", f"{network()}:build", "--data", "sklearn:digits", "--calibration", "20"]
    words += [
        "--method",
        "svd",
        "--budget",
        "layers=50%",
        "--limit",
        "20",
        "--device",
        "cpu",
        "--quiet",
    ]
    return main([*words, "--out", str(out), "--overwrite"])


def saving() -> Work:
    """Return work that saves a small factorized model, as `compressor.save` does."""
    import torch

    from compressor.cli.endings import EndedBySignal, ended_by_signals
    from compressor.errors import CompressorError
    from compressor.layers.lowrank import LowRankLinear
    from compressor.saving import save

    torch.manual_seed(0)
    model = torch.nn.Sequential(LowRankLinear(16, 16, 3), torch.nn.Linear(16, 4))
    model[0].down.weight.data.normal_()

    def work(out: Path) -> int:
        torch.nn.init.normal_(model[1].weight)  # another one each time
        try:
            with ended_by_signals():
                save(model, out, overwrite=True, example=torch.ones(2, 16))
        except CompressorError as error:
            return error.exit_code
        except MemoryError:  # in Python it is for the caller to tell
            return 1
        except (KeyboardInterrupt, EndedBySignal) as error:
            return 128 + getattr(error, "number", signal.SIGINT)
        return 0

    return work


def faults(rng: random.Random, trials: int, steps: int, seconds: float) -> list[Fault]:
    """Draw faults, each kind about equally often.

    Args:
        rng: Draws them.
        trials: How many.
        steps: File operations of the undisturbed work.
        seconds: Time of the undisturbed work.
    """
    kinds: list[Callable[[], Fault]] = [
        *(lambda name=name: Fault(name, delay=rng.uniform(0, seconds)) for name in SIGNALS),  # type: ignore[misc]
        *(lambda name=name: Fault(name, step=rng.randrange(steps)) for name in SIGNALS),  # type: ignore[misc]
        lambda: Fault("full disk", step=rng.randrange(steps)),
        lambda: Fault("file size", limit=int(10 ** rng.uniform(3.5, 6.5))),
        lambda: Fault("memory", limit=int(10 ** rng.uniform(6, 8.3))),
        lambda: Fault("removed", step=rng.randrange(steps)),
        lambda: Fault("two writers"),
    ]
    return [kinds[index % len(kinds)]() for index in range(trials)]


def campaign(
    work: Work, drawn: list[Fault], inputs: list[Path], *, earlier: Callable[[int], bool]
) -> list[Trial]:
    """Run a trial for each fault.

    Args:
        work: What is disturbed.
        drawn: The faults.
        inputs: Files that may not change.
        earlier: Whether an output lies there already, by the trial's number.
    """
    found = []
    with tempfile.TemporaryDirectory(prefix="faults-", dir=PLACE) as place:
        made = Path(place) / "made"
        count_steps(work, made)
        for number, fault in enumerate(drawn):
            root = Path(place) / str(number)
            (root / "place").mkdir(parents=True)
            if earlier(number):
                shutil.copytree(made / "place" / "out", root / "place" / "out")
            found.append(run_trial(work, fault, root, inputs))
            shutil.rmtree(root, ignore_errors=True)
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {len(drawn)}", end="", file=sys.stderr)
    return found


def warmed(work: Work) -> Work:
    """Return work that was done once, so that what it imports is there in every fork."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=PLACE) as place:
        with contextlib.redirect_stdout(sys.stderr):
            code = work(Path(place) / "out")
        if code != 0:
            raise SystemExit("The undisturbed run failed.")
    return work


def every_step(work: Work, names: tuple[str, ...], stride: int) -> list[Fault]:
    """Return each named fault at every file operation of ``work``, or at each ``stride``-th."""
    with tempfile.TemporaryDirectory(prefix="faults-", dir=PLACE) as place:
        steps, _ = count_steps(work, Path(place))
    return [Fault(name, step=step) for name in names for step in range(0, steps + 8, stride)]


def summary(trials: list[Trial]) -> dict[str, Any]:
    """Return the counts of a campaign as JSON."""
    counts = Counter((trial.fault.name, trial.outcome) for trial in trials)
    outcomes = ("absent", "as before", "complete")
    return {
        "trials": len(trials),
        "faults": {
            name: {outcome: counts[name, outcome] for outcome in outcomes}
            for name in dict.fromkeys(trial.fault.name for trial in trials)
        },
        "problems": [
            {"fault": vars(trial.fault), "code": trial.code, "found": trial.problems}
            for trial in trials
            if trial.problems
        ],
    }


def main() -> int:
    """Run the trials and print their counts; returns 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=240, help="random faults (240)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-step", action="store_true", help="save at every step, and no more")
    parser.add_argument("--stride", type=int, default=1, help="look at each how-manieth step")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    inputs = [network().parent]
    atexit.register(shutil.rmtree, network().parent, ignore_errors=True)
    if options.every_step:
        work = warmed(saving())
        drawn = every_step(work, (*SIGNALS, "full disk", "removed"), options.stride)
        trials = campaign(work, drawn, inputs, earlier=lambda _: False)
        trials += campaign(work, drawn, inputs, earlier=lambda _: True)
    else:
        rng = random.Random(options.seed)
        warmed(compressing)
        with tempfile.TemporaryDirectory(prefix="faults-", dir=PLACE) as place:
            steps, seconds = count_steps(compressing, Path(place))
        drawn = faults(rng, options.trials // 2, steps, seconds)
        trials = campaign(compressing, drawn, inputs, earlier=lambda number: number % 3 == 0)
        small = warmed(saving())
        with tempfile.TemporaryDirectory(prefix="faults-", dir=PLACE) as place:
            steps, seconds = count_steps(small, Path(place))
        drawn = faults(rng, options.trials - len(drawn), steps, seconds)
        trials += campaign(small, drawn, inputs, earlier=lambda number: number % 3 == 0)
    found = summary(trials)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['trials']} trials, {len(found['problems'])} with a problem.")
        for name, outcomes in found["faults"].items():
            listed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
            print(f"  {name:<12} {listed}")
        for problem in found["problems"]:
            print(json.dumps(problem))
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
