"""What a sweep of ten points costs over one compression, evaluation excluded, in turn in one run.

python -m benchmarks.sweep_cost --repeats 3
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median

from compressor.demo import MODEL
from compressor.pipeline import compress_model
from compressor.progress import SILENT
from compressor.settings import (
    CompressSettings,
    DataSettings,
    MethodSettings,
    ModelSettings,
    SweepSettings,
)
from compressor.sweep.run import sweep_model

EVALUATION = ("evaluate", "evaluate dense", "time")
"""Stages that judge a result, on test data or by the clock."""


def spent(seconds: dict[str, float]) -> float:
    """Return the seconds of a run's stages but for those that evaluate."""
    return sum(time for stage, time in seconds.items() if stage not in EVALUATION)


def measured(
    model: ModelSettings, data: DataSettings, *, points: int, repeats: int
) -> dict[str, object]:
    """Return medians of both, their ratio, and the stages of the last run of each."""
    one: list[dict[str, float]] = []
    many: list[dict[str, float]] = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as directory:
            small = CompressSettings(
                model=model,
                data=data,
                method=MethodSettings(budget=("layers=50%",)),
                out=Path(directory) / "small",
            )
            one.append(compress_model(small, progress=SILENT).seconds)
            ladder = SweepSettings(
                model=model, data=data, points=points, out=Path(directory) / "sweep"
            )
            many.append(sweep_model(ladder, progress=SILENT).seconds)
    compress, sweep = (median(spent(seconds) for seconds in runs) for runs in (one, many))
    return {
        "points": points,
        "compress": compress,
        "sweep": sweep,
        "ratio": sweep / compress,
        "stages": {"compress": one[-1], "sweep": many[-1]},
    }


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--calibration", type=int)
    given = parser.parse_args()
    data = DataSettings(data="sklearn:digits", calibration=given.calibration)
    model = ModelSettings(model=str(MODEL), device="cpu")
    print(json.dumps(measured(model, data, points=given.points, repeats=given.repeats), indent=2))


if __name__ == "__main__":
    main()
