"""Compare every method on the same work: methods × budgets × workloads × seeds.

    make benchmark BENCHMARK="--path minilm-r52-model=… --path minilm-r52-data=…"
    python -m benchmarks.quality --quick

Workloads whose model or data is not there are skipped with the reason. Statistics and
decompositions are made once for a workload and seed, and shared by all methods and budgets. Each
finished cell is appended to results.jsonl at once: run the same command again to go on where it
stopped. The test split is looked at once for each cell, after its last choice.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch

from benchmarks.arms import DEFAULT, Arm, chosen_arms
from benchmarks.plots import draw
from benchmarks.prepared import DenseCache, Prepared
from benchmarks.results import Cell, Results, Row, latest
from benchmarks.tables import markdown, summaries
from benchmarks.workloads import WORKLOADS, Settings, Workload, find_paths, places
from compressor.errors import CompressorError, UsageError
from compressor.fingerprint import code_version
from compressor.methods.budget import parse_budget

OUT = Path(__file__).parents[1] / "docs" / "benchmarks"
VERSIONS = ("compressor", "torch", "transformers", "timm", "numpy")

DEFAULT_ALONE = (
    "methods/aside.py",
    "methods/attribution.py",
    "methods/fitted_samples.py",
    "methods/forms.py",
    "methods/guided.py",
    "methods/judging.py",
    "methods/layer_fit.py",
    "methods/lockstep.py",
    "methods/pair_sums.py",
    "methods/refit.py",
    "methods/residuals.py",
    "methods/select.py",
    "methods/separable.py",
    "methods/twins.py",
)
"""Files that no other arm than the default runs: a change of them leaves the others' rows valid."""

QUICK_WORKLOADS = ("digits-vit",)
QUICK_METHODS = ("nc1", "nc1, *", "svd", "covariance, relative*")
QUICK_BUDGETS = ("layers=40%",)
QUICK_SAMPLES = 256


@dataclass(frozen=True)
class Options:
    """What to run.

    Args:
        workloads: Workloads with their settings and the budgets to compress to.
        arms: What to compare.
        seeds: Seeds.
        code: Hash of the code.
        shared_code: Hash of it without what the default alone runs.
        retry: Run cells again that failed before.
        seconds: Start no cell after this many seconds; None sets no limit.
    """

    workloads: tuple[tuple[Workload, Settings], ...]
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    code: str
    shared_code: str
    retry: bool = False
    seconds: float | None = None

    def code_of(self, arm: Arm) -> str:
        """Return the version of the code that an arm's figures depend on."""
        return self.code if arm.method == DEFAULT else self.shared_code

    @property
    def cells(self) -> int:
        """Number of cells."""
        budgets = sum(len(workload.budgets) for workload, _ in self.workloads)
        return budgets * len(self.arms) * len(self.seeds)


class Run:
    """One run through all cells that are not finished.

    Args:
        options: What to run.
        results: Where finished cells are kept.
    """

    def __init__(self, options: Options, results: Results) -> None:
        self._options = options
        self._results = results
        self._dense = DenseCache()
        self._start = time.perf_counter()
        self._passed = self.finished = 0
        self._cell_seconds = 0.0
        self._measure_seconds: list[float] = []
        self._unmeasured = len(options.seeds) * len(options.workloads)

    def all(self) -> None:
        """Run every cell, whole seeds one after the other."""
        for seed in self._options.seeds:
            for workload, settings in self._options.workloads:
                if self._out_of_time():
                    _tell("The time is up; run again to go on.")
                    return
                self._workload(workload, settings, seed)

    def _workload(self, workload: Workload, settings: Settings, seed: int) -> None:
        _tell(f"{workload.name}, seed {seed}: load")
        self._unmeasured -= 1
        try:
            prepared = Prepared(settings, seed=seed, dense=self._dense)
        except CompressorError as refusal:
            _tell(f"{workload.name} is skipped: {refusal}")
            self._passed += len(workload.budgets) * len(self._options.arms)
            return
        todo = []
        for budget in workload.budgets:
            for arm in self._options.arms:
                cell = Cell(
                    workload=workload.name,
                    method=arm.name,
                    budget=budget,
                    seed=seed,
                    model=prepared.model_hash,
                    data=prepared.data_hash,
                    settings=prepared.settings_hash,
                    code=self._options.code_of(arm),
                )
                known = self._results.find(cell)
                if known is None or (known.error is not None and self._options.retry):
                    todo.append((cell, arm))
        self._passed += len(workload.budgets) * len(self._options.arms) - len(todo)
        if not todo:
            _tell(f"{workload.name}, seed {seed}: every cell is finished")
            return
        _tell(f"{workload.name}, seed {seed}: measure for {len(todo)} cells")
        try:
            measurement = prepared.measured({arm.needs for _, arm in todo})
        except CompressorError as refusal:
            _tell(f"{workload.name} is skipped, for it cannot be measured: {refusal}")
            self._passed += len(todo)
            return
        for needs, cost in prepared.passes.items():
            _tell(f"{workload.name}, seed {seed}: {needs} pass {cost.seconds:.1f} s")
        self._measure_seconds.append(sum(cost.seconds for cost in prepared.passes.values()))
        for cell, arm in todo:
            if self._out_of_time():
                return
            start = time.perf_counter()
            figures = error = None
            try:
                figures = prepared.run(measurement, arm, cell.budget)
            except Exception as failure:  # one method's failure must not end hours of work
                error = f"{type(failure).__name__}: {failure}"
                if not isinstance(failure, CompressorError):
                    traceback.print_exc()
            self._results.add(
                Row(
                    cell=cell,
                    group=arm.group,
                    figures=figures,
                    error=error,
                    test_samples=len(prepared.data.test),
                    threads=torch.get_num_threads(),
                    versions={name: version(name) for name in VERSIONS},
                )
            )
            self._passed += 1
            self.finished += 1
            took = time.perf_counter() - start
            self._cell_seconds += took
            found = error or (
                "" if figures is None else f"KL {figures.kl:.4g}, agreement {figures.agreement:.3f}"
            )
            _tell(
                f"[{self._passed}/{self._options.cells}] {cell.workload} {cell.budget} "
                f"{cell.method}, seed {seed}: {found} ({took:.0f} s; "
                f"{self._left()} left)"
            )

    def _left(self) -> str:
        """Return how long the cells not passed yet will take at the pace so far."""
        cells = self._cell_seconds / self.finished * (self._options.cells - self._passed)
        passes = median(self._measure_seconds) * self._unmeasured
        minutes = (cells + passes) / 60
        return f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute"

    def _out_of_time(self) -> bool:
        limit = self._options.seconds
        return limit is not None and time.perf_counter() - self._start > limit


def write(out: Path, results: Results) -> None:
    """Write the table, the summary and the plot of all results."""
    titles = {name: workload.title for name, workload in WORKLOADS.items()}
    found = summaries(results.rows)
    if not found:
        return
    out.mkdir(parents=True, exist_ok=True)
    draw(found, titles, out / "quality.svg")
    page = markdown(results.rows, titles, plot="quality.svg")
    (out / "quality.md").write_text(page, encoding="utf-8")
    summary = {
        "code": sorted({row.cell.code for row in latest(results.rows)}),
        "rows": [asdict(summary) for summary in found],
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line says; return how many cells were run."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    results = Results(given.out / "results.jsonl", any_code=given.any_code)
    for note in results.notes:
        _tell(note)
    finished = 0
    if not given.report:
        try:
            options = _options(given)
        except CompressorError as error:
            parser.error(str(error))
        _tell(f"{options.cells} cells: {len(options.arms)} methods, {len(options.seeds)} seeds")
        run = Run(options, results)
        run.all()
        finished = run.finished
    write(given.out, results)
    _tell(f"{finished} cells were run; see {given.out}")
    return finished


def _options(given: argparse.Namespace) -> Options:
    names = given.workloads or (QUICK_WORKLOADS if given.quick else WORKLOADS.names())
    paths = find_paths(given.path)
    workloads = []
    for name in names:
        workload = WORKLOADS.get(name)
        reason = workload.missing(paths)
        if reason is not None:
            _tell(f"{name} is skipped: {reason}")
            continue
        model, data = workload.settings(paths)
        if given.quick:
            data = data.model_copy(update={"calibration": QUICK_SAMPLES, "limit": QUICK_SAMPLES})
        fewer = {"limit": given.limit, "calibration": given.calibration}
        data = data.model_copy(update={key: size for key, size in fewer.items() if size})
        budgets = given.budgets or (QUICK_BUDGETS if given.quick else workload.budgets)
        workloads.append((replace(workload, budgets=tuple(budgets)), (model, data)))
    return Options(
        workloads=tuple(workloads),
        arms=chosen_arms(given.methods or (QUICK_METHODS if given.quick else ())),
        seeds=tuple(given.seeds or ((0,) if given.quick else (0, 1, 2))),
        code=code_version(),
        shared_code=code_version(leave_out=DEFAULT_ALONE),
        retry=given.retry,
        seconds=None if given.minutes is None else 60 * given.minutes,
    )


def _budget(text: str) -> str:
    """Return a budget as written, once it can be read."""
    try:
        parse_budget(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name}: {meaning}" for name, meaning in places().items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description=__doc__,
        epilog=f"places for --path:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=OUT, help="directory to write")
    parser.add_argument(
        "--path",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="where a model or data set lies; also COMPRESSOR_BENCHMARK_<NAME>",
    )
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS.names(), metavar="NAME")
    parser.add_argument("--methods", nargs="+", metavar="PATTERN", help="shell-style; default all")
    parser.add_argument(
        "--budgets", nargs="+", metavar="BUDGET", type=_budget, help="for every workload"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default 0 1 2")
    parser.add_argument("--limit", type=int, help="test samples, alike for every method")
    parser.add_argument("--calibration", type=int, help="calibration samples, alike too")
    parser.add_argument("--threads", type=int, help="threads that torch computes on")
    parser.add_argument("--minutes", type=float, help="start no cell after this long")
    parser.add_argument("--retry", action="store_true", help="run cells again that failed before")
    parser.add_argument(
        "--any-code",
        action="store_true",
        help="take cells for finished that another version of the code finished",
    )
    parser.add_argument("--report", action="store_true", help="only write table and plot anew")
    parser.add_argument("--quick", action="store_true", help="a small part, in a minute or two")
    return parser


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
