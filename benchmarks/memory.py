"""Peak memory of compressing a language model, whole and block by block, beyond the model itself.

    python -m benchmarks.memory MODEL --data corpus.txt [--calibration 8] [--budget layers=80%]

Each way runs in a process of its own. What counts is anonymous memory (RssAnon), sampled while the
stages run, above what it was when the model and the data were loaded: pages of files that the
system may drop at any time are no need. The length of windows has a part in it, and their number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from compressor.pipeline.steps import load_run, measure_run
from compressor.progress import SILENT
from compressor.settings import DataSettings, MethodSettings, ModelSettings
from compressor.stages import factorize, plan
from compressor.stopwatch import Stopwatch

EVERY = 0.01
"""Seconds between samples."""

WAYS = ("whole", "blockwise")
MIB = 2**20


@dataclass
class Sampler:
    """The largest anonymous memory of this process while it runs, in bytes."""

    peak: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Sample from another thread inside the block."""
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(EVERY):
            self.peak = max(self.peak, anonymous())


def anonymous() -> int:
    """Return the anonymous memory of this process in bytes (proc(5))."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == "RssAnon":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/self/status tells no RssAnon")


def run(
    model: str, data: DataSettings, *, budget: str, method: str, blockwise: bool
) -> dict[str, float]:
    """Return the peak in MiB of each stage, and the seconds that it took."""
    watch = Stopwatch()
    loaded = load_run(ModelSettings(model=model, device="cpu"), data, 0, watch, SILENT)
    settings = MethodSettings(method=method, budget=(budget,), blockwise=blockwise)
    start = anonymous()
    found: dict[str, float] = {
        "model MiB": sum(
            p.nbytes for p in {id(p): p for p in loaded.model.module.parameters()}.values()
        )
        / MIB
    }

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        sampler = Sampler()
        with sampler.running(), watch.stage(name):
            yield
        found[f"{name} MiB"] = round(max(sampler.peak - start, 0) / MIB, 1)

    with stage("measuring"):
        measurement = measure_run(loaded, settings, 0, watch, SILENT)
    with stage("planning"):
        made = plan(measurement, budget, method=method)
    with stage("factorizing"):
        factorize(loaded.model.module, made)
    return {
        **found,
        "peak MiB": max(value for name, value in found.items() if name.endswith("ing MiB")),
        "measure s": round(watch.seconds["measuring"], 1),
    }


def main() -> None:
    """Print one JSON line for each way, and the ratio of both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--calibration", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--budget", default="layers=80%")
    parser.add_argument("--method", default="nc1")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--here", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here is not None:
        data = DataSettings(
            data=given.data,
            calibration=given.calibration,
            max_length=given.max_length,
            limit=1,
        )
        found = run(
            given.model,
            data,
            budget=given.budget,
            method=given.method,
            blockwise=given.here == "blockwise",
        )
        print(json.dumps({"way": given.here, **found}))
        return
    peaks = []
    for way in given.ways.split(","):
        again = [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:], "--here", way]
        line = subprocess.run(again, check=True, capture_output=True, text=True).stdout
        print(line, end="", flush=True)
        peaks.append(json.loads(line)["peak MiB"])
    if len(peaks) > 1:
        print(json.dumps({"blockwise over whole": round(peaks[1] / peaks[0], 3)}))


if __name__ == "__main__":
    main()
