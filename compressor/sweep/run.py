"""`sweep`: measure once, then plan, factorize and evaluate one budget after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from compressor.cache import Cache
from compressor.checkpoint.save import refuse_existing_file, write_file
from compressor.checkpoint.storage import round_to_storage_
from compressor.errors import OutputExistsError
from compressor.evaluation.loop import Evaluation
from compressor.figures import Loaded, data_figures, model_figures, versions
from compressor.fingerprint import code_version, hash_of, hash_of_weights
from compressor.layers.candidates import Candidates
from compressor.methods.budget import parse_budget
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, conv_form_of
from compressor.methods.plan import read_plan
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import label
from compressor.methods.subject import Subject
from compressor.pipeline.resume import kept_results
from compressor.pipeline.steps import (
    evaluate_dense,
    evaluate_run,
    grant_run,
    load_run,
    measure_run,
    plan_run,
    subject_run,
)
from compressor.progress import Progress
from compressor.report.frontier import frontier_drawing, frontier_page
from compressor.schema import ModelFigures
from compressor.settings import SweepSettings
from compressor.speed import speed_figures
from compressor.stages import factorize
from compressor.stopwatch import Stopwatch
from compressor.sweep.journal import FILE, Entry, Journal
from compressor.sweep.ladder import ladder
from compressor.sweep.landmarks import knee, smallest_within
from compressor.sweep.recipes import choosing_points, settled
from compressor.sweep.schema import TOLERANCES, Knee, Sweep, SweepPoint, Within


@dataclass(frozen=True)
class Bench:
    """What all points of a sweep share.

    Args:
        settings: What was asked for.
        loaded: The model and its data.
        subject: What budgets are counted on.
        watch: Where time is counted.
        progress: Told of each step.
        cache: Where statistics, decompositions, judgements and dense logits are kept, as those of
            `compress` are.
    """

    settings: SweepSettings
    loaded: Loaded
    subject: Subject
    watch: Stopwatch
    progress: Progress
    cache: Cache | None = None

    @property
    def candidates(self) -> Candidates:
        """The model's layers that can be factorized."""
        return self.subject.candidates

    @cached_property
    def dense(self) -> Evaluation:
        """The dense model on the test data: its logits are what every point is compared with."""
        with self.watch.stage("evaluate dense"):
            return evaluate_dense(self.loaded, self.progress, self.cache)

    @cached_property
    def base(self) -> dict[str, object]:
        """Everything that the figures of every point depend on, as plain data."""
        settings, data = self.settings, self.loaded.data
        return {
            "model": self.loaded.model.sha256 or hash_of_weights(self.loaded.model.module),
            "read": settings.model.model_dump(
                mode="json", exclude={"model", "checkpoint", "factory"}
            ),
            "data": [data.calibration.sha256, data.selection.sha256, data.test.sha256],
            "batches": settings.data.model_dump(mode="json", exclude={"data"}),
            "common": settings.method.model_dump(mode="json", exclude={"method", "budget"}),
            "device": str(self.loaded.forward.device),
            "seed": settings.seed,
            "versions": versions(),
            "code": code_version(),
        }

    def key(self, *of: str) -> str:
        """Return the key of a point (its method and budget), or of the dense model (nothing)."""
        return hash_of([self.base, *of])


def sweep_model(settings: SweepSettings, *, progress: Progress) -> Sweep:
    """Evaluate a ladder of budgets under each method, and write plans, sweep.json and pages.

    Statistics are gathered once for all methods that need the same pass; decompositions, the dense
    model's logits and, of a method that judges many recipes, its choice (`choosing_points`) are
    shared by points. Each finished point is kept at once: a call that goes on in the same directory
    repeats none whose model, data, settings and code are the same, and measures nothing again.

    Raises:
        OutputExistsError: If ``out`` holds something else than a sweep.
        UsageError: If a name, pattern or budget is wrong.
        BudgetError: If a budget cannot be reached; before anything is measured.
        CompressorError: As `compressor.pipeline.compress_model`.
    """
    _refuse_foreign(settings.out)
    for method in settings.methods:
        METHODS.get(method)
    for budget in settings.budgets:
        parse_budget(budget)
    watch = Stopwatch()
    loaded = load_run(settings.model, settings.data, settings.seed, watch, progress)
    bench = Bench(settings, loaded, subject_run(loaded, settings.method), watch, progress)
    budgets = settings.budgets or ladder(
        settings.budget_kind,
        settings.points,
        bench.subject,
        multiple=settings.method.rank_multiple,
    )
    for budget in budgets:
        grant_run(bench.subject, settings.method.model_copy(update={"budget": (budget,)}))
    settings.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(settings.out / FILE)
    wanted = [(method, budget) for method in settings.methods for budget in budgets]
    with kept_results(settings, loaded, progress, resume=True) as cache:
        _finish(replace(bench, cache=cache), journal, wanted)
    dense = journal.find(bench.key())
    assert dense is not None
    assert dense.dense is not None
    points = [_found(bench, journal, *each) for each in wanted]
    return _write(_sweep(bench, dense.dense, [point for point in points if point is not None]))


def _finish(bench: Bench, journal: Journal, wanted: Sequence[tuple[str, str]]) -> None:
    """Make every point that the journal lacks, and the dense model's figures."""
    missing = [each for each in wanted if _found(bench, journal, *each) is None]
    done = len(wanted) - len(missing)
    if done:
        bench.progress.note(f"{done} of {len(wanted)} points were finished before.")
    if journal.find(bench.key()) is None:
        figures = model_figures(
            bench.loaded,
            bench.dense,
            bench.candidates.layer_parameters,
            bench.loaded.model.bytes_on_disk,
        )
        journal.add(Entry(key=bench.key(), dense=figures))
    for found, methods in _measurements(bench, [method for method, _ in missing]):
        for method in methods:
            for budget, chooser in _choosers([budget for own, budget in wanted if own == method]):
                if (method, budget) in missing:
                    recipe = _recipe(bench, method, budget, chooser)
                    point = _point(bench, found, method, budget, recipe)
                    key, written = bench.key(method, budget), _plan_hash(bench, point)
                    journal.add(Entry(key=key, point=point, plan=written))


def _choosers(budgets: Sequence[str]) -> list[tuple[str, str]]:
    """Return each budget and the one that chooses its recipe; those that do so come first."""
    chosen = zip(budgets, (budgets[at] for at in choosing_points(len(budgets))), strict=True)
    return sorted(chosen, key=lambda pair: pair[0] != pair[1])


def _recipe(bench: Bench, method: str, budget: str, chooser: str) -> Recipe | None:
    """Return what a finished point chose for another; None where the other has to choose."""
    if budget == chooser:
        return None
    return settled(read_plan(bench.settings.out / _plan_path(method, chooser)), budget)


def _measurements(
    bench: Bench, methods: Sequence[str]
) -> Iterator[tuple[Measurement, tuple[str, ...]]]:
    """Yield one measurement for each sort of pass that is needed, and the methods it is for.

    One is let go before the next is made. Joining passes would save little and change the last
    digits, so that a point would no longer be what `compress` gives.
    """
    common = bench.settings.method
    by_needs: dict[tuple[str, str], list[str]] = {}
    for method in dict.fromkeys(methods):
        needs = METHODS.get(method).needs(gradients=common.gradients)
        sort = needs, conv_form_of(method, common.conv_form)
        by_needs.setdefault(sort, []).append(method)
    for group in by_needs.values():
        own = common.model_copy(update={"method": group[0]})
        found = measure_run(
            bench.loaded,
            own,
            bench.settings.seed,
            bench.watch,
            bench.progress,
            cache=bench.cache,
        )
        yield found, tuple(group)


def _point(
    bench: Bench, found: Measurement, method: str, budget: str, recipe: Recipe | None
) -> SweepPoint:
    """Plan, factorize and evaluate one point as `compress` does, and write its plan.

    Args:
        bench: What all points share.
        found: The dense model, measured.
        method: Registered method.
        budget: As written.
        recipe: How to truncate and share, where a neighbour's choice settles that.
    """
    own = Stopwatch()
    bench.progress.note(f"{method}, {budget}")
    asked = bench.settings.method.model_copy(update={"method": method, "budget": (budget,)})
    with own.stage("plan"):
        made = plan_run(found, bench.subject, asked, bench.watch, bench.progress, recipe=recipe)
    candidates = (made.measurement or found).candidates
    with bench.watch.stage("factorize"), own.stage("factorize"):
        small = factorize(bench.loaded.model.module, made, progress=bench.progress)
        round_to_storage_(small, bench.loaded.model.storage_dtypes)
    dense = bench.dense
    with bench.watch.stage("evaluate"), own.stage("evaluate"):
        after = evaluate_run(bench.loaded, small, "evaluate", bench.progress, dense)
    with bench.watch.stage("time"), own.stage("time"):
        speed = speed_figures(bench.subject.of(candidates), small)
    kept = sum(layer.cost(made.ranks[name]) for name, layer in candidates.layers.items())
    compressed = replace(bench.loaded, model=replace(bench.loaded.model, module=small))
    figures = model_figures(compressed, after, kept, None)
    path = _plan_path(method, budget)
    write_file(bench.settings.out / path, made.model_dump_json(indent=2) + "\n")
    return SweepPoint(
        method=method,
        budget=budget,
        plan=path,
        layer_share=kept / bench.candidates.layer_parameters,
        parameter_share=figures.parameters / bench.candidates.parameters,
        flops_share=1.0,
        choice=label(made.recipe),
        figures=figures,
        seconds=own.seconds,
        speed=speed,
    )


def _found(bench: Bench, journal: Journal, method: str, budget: str) -> SweepPoint | None:
    """Return a finished point whose plan is still there as it was written.

    A sweep of other settings in the same directory writes its plans in place of this one's.
    """
    entry = journal.find(bench.key(method, budget))
    if entry is None or entry.point is None or entry.plan is None:
        return None
    return entry.point if _plan_hash(bench, entry.point) == entry.plan else None


def _plan_hash(bench: Bench, point: SweepPoint) -> str | None:
    """Return the hash of a point's plan file; None where there is none."""
    path = bench.settings.out / point.plan
    return hash_of(path.read_text(encoding="utf-8")) if path.is_file() else None


def _plan_path(method: str, budget: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", f"{method}-{budget}").strip("-")
    return f"plans/{slug}.json"


def _sweep(bench: Bench, dense: ModelFigures, points: Sequence[SweepPoint]) -> Sweep:
    """Return the sweep with its landmarks."""
    settings = bench.settings
    shared = [
        point.model_copy(update={"flops_share": point.figures.flops / max(dense.flops, 1)})
        for point in points
    ]
    bare = Sweep(
        model=settings.model.model,
        framework=bench.loaded.model.framework,
        model_sha256=bench.loaded.model.sha256,
        seed=settings.seed,
        device=str(bench.loaded.forward.device),
        command=settings.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        data=data_figures(bench.loaded.data),
        dense=dense,
        quality="agreement" if dense.accuracy is None else "accuracy",
        points=tuple(shared),
        knees=(),
        within=(),
        seconds=bench.watch.seconds,
        out=str(settings.out),
        notes=bench.loaded.notes,
    )
    return bare.model_copy(update={"knees": _knees(bare), "within": _within(bare)})


def _knees(sweep: Sweep) -> tuple[Knee, ...]:
    """Return the knee of each method's curve, the dense model its last point."""
    found = []
    for method in dict.fromkeys(point.method for point in sweep.points):
        own = {point.parameter_share: point for point in sweep.points if point.method == method}
        own.pop(1.0, None)  # a point that kept everything is the dense model
        qualities = [sweep.quality_of(point.figures) for point in own.values()]
        at = knee([*own, 1.0], [*qualities, _dense_quality(sweep)])
        if at is not None and at < len(own):
            found.append(Knee(method=method, plan=list(own.values())[at].plan))
    return tuple(found)


def _within(sweep: Sweep) -> tuple[Within, ...]:
    costs = [point.parameter_share for point in sweep.points]
    qualities = [sweep.quality_of(point.figures) for point in sweep.points]
    found = []
    for tolerance in TOLERANCES:
        at = smallest_within(costs, qualities, _dense_quality(sweep), tolerance)
        chosen = None if at is None else sweep.points[at].plan
        found.append(Within(tolerance=tolerance, plan=chosen))
    return tuple(found)


def _dense_quality(sweep: Sweep) -> float:
    return sweep.quality_of(sweep.dense)


def _write(sweep: Sweep) -> Sweep:
    out = Path(sweep.out)
    write_file(out / "sweep.json", sweep.model_dump_json(indent=2) + "\n")
    write_file(out / "sweep.svg", frontier_drawing(sweep))
    write_file(out / "sweep.html", frontier_page(sweep))
    return sweep


def _refuse_foreign(out: Path) -> None:
    """Refuse a directory that holds something, but no sweep to go on with."""
    if not out.is_dir():
        refuse_existing_file(out, overwrite=False)
        return
    if any(out.iterdir()) and not (out / FILE).is_file():
        raise OutputExistsError(
            f"{out} exists and holds no sweep to go on with. Choose another --out."
        )
