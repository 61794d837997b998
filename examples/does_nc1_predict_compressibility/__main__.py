r"""Truncate every layer of several trained networks alone, and ask what would have told its cost.

python -m examples.does_nc1_predict_compressibility --out OUT \
    --path minilm-r52-model=MODEL --path minilm-r52-data=DATA

Networks without a path are skipped, with a line that says which path is missing; the bundled vision
transformer needs none. A run that was stopped goes on with the networks that are not done.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS, Workload, find_paths
from compressor.cli.progress import TerminalProgress
from compressor.errors import CompressorError
from compressor.figures import versions
from compressor.methods.measurement import Measurement
from compressor.pipeline.steps import evaluate_run, load_run, measure_run
from compressor.progress import Progress
from compressor.settings import MethodSettings
from compressor.stopwatch import Stopwatch
from examples.does_nc1_predict_compressibility.figures import draw
from examples.does_nc1_predict_compressibility.layers import layer_costs
from examples.does_nc1_predict_compressibility.networks import ORDER
from examples.does_nc1_predict_compressibility.tables import page
from examples.does_nc1_predict_compressibility.whole import whole_models

TOKEN_NETWORKS = ("smollm2",)
"""Networks whose samples are windows of tokens: 16 times fewer are taken."""


def study(
    workload: Workload,
    paths: dict[str, Path],
    options: argparse.Namespace,
    progress: Progress,
) -> dict[str, Any]:
    """Return everything that is found of one network, ready for JSON."""
    start = time.process_time()
    model, data = workload.settings(paths)
    fewer = 16 if workload.name in TOKEN_NETWORKS else 1
    data = data.model_copy(
        update={"limit": options.samples // fewer, "calibration": options.calibration // fewer}
    )
    layers: list[dict[str, Any]] = []
    whole: list[dict[str, Any]] = []
    told: dict[str, Any] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        watch = Stopwatch()
        loaded = load_run(model, data, seed, watch, progress)
        found: Measurement = measure_run(
            loaded, MethodSettings(method="nc1", gradients=True), seed, watch, progress
        )
        dense = evaluate_run(loaded, loaded.model.module, "evaluate dense", progress)
        if seed == options.seed:
            told = {
                "candidates": len(found.candidates.layers),
                "accuracy": dense.accuracy,
                "samples": dense.samples,
                "tokens": dense.tokens,
                "calibration": len(loaded.data.calibration),
                "classes": len(loaded.data.class_names),
                "calibration_sha256": loaded.data.calibration.sha256,
                "test_sha256": loaded.data.test.sha256,
            }
            layers = [
                asdict(cost)
                for cost in layer_costs(
                    found,
                    loaded,
                    dense,
                    share=options.share,
                    most=options.most_layers,
                    progress=progress,
                )
            ]
        budgets = workload.budgets[: options.budgets]
        whole += [asdict(one) for one in whole_models(found, loaded, dense, budgets, progress)]
    return {
        "name": workload.name,
        "title": workload.title,
        "share": options.share,
        "seed": options.seed,
        "seeds": options.seeds,
        **told,
        "versions": versions(),
        "cpu_seconds": round(time.process_time() - start),
        "layers": layers,
        "whole": whole,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Run the study.

    Args:
        words: The command line's; those of this process if None.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory to write to, or go on")
    parser.add_argument("--path", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", action="append", choices=ORDER, help="run these networks only")
    parser.add_argument("--share", type=float, default=0.25, help="of its weights a layer keeps")
    parser.add_argument("--samples", type=int, default=192, help="test samples a network")
    parser.add_argument("--calibration", type=int, default=256, help="calibration samples")
    parser.add_argument("--most-layers", type=int, default=60, help="layers of each network")
    parser.add_argument("--budgets", type=int, default=2, help="budgets of each network")
    parser.add_argument("--seeds", type=int, default=3, help="of whole-model compression")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--full", action="store_true", help="all layers and budgets, 1,024 samples, five seeds"
    )
    parser.add_argument("--redraw", action="store_true", help="run nothing, draw what is there")
    options = parser.parse_args(words)
    if options.full:
        options.samples = options.calibration = 1024
        options.most_layers, options.budgets, options.seeds = None, None, 5
    options.out.mkdir(parents=True, exist_ok=True)
    paths = find_paths(options.path)
    failed = False
    for name in [] if options.redraw else options.only or ORDER:
        workload, file = WORKLOADS.get(name), options.out / f"{name}.json"
        reason = "done before" if file.is_file() else workload.missing(paths)
        if reason is not None:
            print(f"{name}: skipped, {reason}", file=sys.stderr)
            continue
        try:
            with TerminalProgress() as progress:
                result = study(workload, paths, options, progress)
        except CompressorError as error:
            print(f"{name}: failed, {error}", file=sys.stderr)
            failed = True
            continue
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: {result['cpu_seconds']} s of CPU time", file=sys.stderr, flush=True)
    results = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in (options.out / f"{name}.json" for name in ORDER)
        if file.is_file()
    ]
    draw(results, options.out)
    (options.out / "tables.md").write_text(page(results), encoding="utf-8")
    print(options.out / "tables.md")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
