"""What correcting BatchNorm statistics does to a method's KL, with and without it side by side.

python -m benchmarks.norms --path resnet-checkpoint=… --path resnet-data=… [--budget layers=50%]

Ranks are those of the method's own plan, and only the correction is switched; the default comes
once without and once with a refit. KL is from the dense model on the test split, in nats, medians
over seeds.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.prepared import DenseCache, Prepared
from benchmarks.workloads import WORKLOADS, Workload, find_paths
from compressor.evaluation.loop import evaluate
from compressor.methods.measurement import Measurement
from compressor.methods.refit import RIDGE
from compressor.stages import plan

METHODS = ("nc1", "gfwsvd", "balf", "svd-llm", "svd")


@dataclass(frozen=True)
class Compared:
    """One method under one seed.

    Args:
        method: Registered method.
        seed: Seed of every draw.
        refitted: Whether factors were refitted in sequence.
        corrected: KL with BatchNorm statistics corrected, in nats.
        uncorrected: KL without.
    """

    method: str
    seed: int
    refitted: bool
    corrected: float
    uncorrected: float


def compare(prepared: Prepared, found: Measurement, method: str, budget: str) -> Iterator[Compared]:
    """Yield a method with its plan's factors, and for the default with them refitted."""
    made = plan(found, budget, method=method)
    assert made.measurement is not None
    found = made.measurement  # with convolutions in the forms that the plan chose
    ranks = {name: layer.rank for name, layer in made.layers.items()}
    for refit in (None, RIDGE) if method == "nc1" else (None,):
        kls = []
        for correction in (True, False):
            recipe = made.recipe.model_copy(update={"refit": refit, "norm_correction": correction})
            model, _ = found.factorized(ranks, recipe)
            after = evaluate(
                model,
                prepared.data.test,
                forward=prepared.forward,
                dense_logits=prepared.dense.logits,
            )
            assert after.kl_to_dense is not None
            kls.append(after.kl_to_dense)
        yield Compared(method, prepared.seed, refit is not None, *kls)


def table(rows: list[Compared]) -> str:
    """Return the medians as Markdown."""
    grouped: dict[tuple[str, bool], list[Compared]] = defaultdict(list)
    for row in rows:
        grouped[row.method, row.refitted].append(row)
    lines = ["| method | corrected | not corrected | ratio |", "|---|---:|---:|---:|"]
    for (method, refitted), own in grouped.items():
        with_it, without = (
            median(row.corrected for row in own),
            median(row.uncorrected for row in own),
        )
        name = f"`{method}`, refitted" if refitted else f"`{method}`"
        lines.append(f"| {name} | {with_it:.3g} | {without:.3g} | {with_it / without:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--budget", default="layers=50%")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true", help="every figure, and no table")
    options = parser.parse_args()
    workload: Workload = WORKLOADS.get("resnet-batchnorm")
    paths = find_paths(options.path)
    missing = [
        f"--path {place}=…: {what}" for place, what in workload.places.items() if place not in paths
    ]
    if missing:
        parser.error("; ".join(missing))
    settings = workload.settings(paths)
    dense, rows = DenseCache(), list[Compared]()
    for seed in options.seeds:
        prepared = Prepared(settings, seed=seed, dense=dense)
        found = prepared.measured(["gradients"])
        for method in METHODS:
            rows += compare(prepared, found, method, options.budget)
    print(json.dumps([asdict(row) for row in rows], indent=1) if options.json else table(rows))


if __name__ == "__main__":
    main()
