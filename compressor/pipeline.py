"""The stages in order, from what a person names to what is saved: what the commands call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from compressor.cache import Cache, Tensors
from compressor.checkpoint.save import (
    refuse_existing,
    refuse_existing_file,
    refuse_inputs,
    write_file,
)
from compressor.checkpoint.storage import round_to_storage_
from compressor.data import SPLITS, load_data
from compressor.distributed import current
from compressor.errors import DataError, UsageError
from compressor.evaluation.harness import parse_tasks, run_tasks
from compressor.evaluation.loop import Evaluation, evaluate, score
from compressor.evaluation.runtimes.runtime import RUNTIMES
from compressor.figures import (
    Loaded,
    doubts,
    example_length,
    flops,
    left_dense,
    metric_figures,
    parameters,
    perplexities,
    quality_figures,
)
from compressor.forward import Forward
from compressor.inspection import inspect_model
from compressor.layers.unfusing import unfused
from compressor.methods.budget import Granted, granted, parse_budget
from compressor.methods.measurement import Measurement, default_device
from compressor.methods.method import METHODS
from compressor.methods.outcome import layer_figures
from compressor.methods.plan import Plan, read_plan
from compressor.methods.recover import Recovery, recover
from compressor.methods.subject import Subject
from compressor.models import LoadedModel, load_model
from compressor.progress import Progress
from compressor.result import budget_figures, make_report, save_result
from compressor.resume import finished_before, kept_results
from compressor.schema import (
    EvaluationReport,
    PlanReport,
    RecoveryFigures,
    Report,
    TaskFigures,
)
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings
from compressor.speed import speed_figures
from compressor.stages import candidates_of, factorize, measure, plan, probe_inputs
from compressor.stopwatch import Stopwatch
from compressor.tokens import TokenForward

SELECTION_TO_JUDGE = 2048
"""Held-out samples that a ``drop=`` budget is judged on, at most, where nothing else is said."""


def plan_model(
    model: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    *,
    seed: int,
    out: Path | None,
    overwrite: bool,
    progress: Progress,
) -> PlanReport:
    """Choose ranks and write them as an editable plan.json.

    Raises:
        OutputExistsError: If ``out`` exists and ``overwrite`` is not set.
        CompressorError: As `compress_model`.
    """
    if out is not None:
        refuse_inputs(out, _inputs(model, data))
        refuse_existing_file(out, overwrite=overwrite)
    _check_names(method)
    watch = Stopwatch()
    loaded = load_run(model, enough_to_judge(data, method), seed, watch, progress)
    subject = subject_run(loaded, method)
    grant_run(subject, method)  # what cannot be met is refused before anything is measured
    found = measure_run(loaded, method, seed, watch, progress)
    made = plan_run(found, subject, method, watch, progress)
    if out is not None and loaded.forward.group.leads:
        write_file(out, made.model_dump_json(indent=2) + "\n")
    kept = sum(layer.cost(made.ranks[name]) for name, layer in found.candidates.layers.items())
    dense = found.candidates.layer_parameters
    total = found.candidates.parameters
    return PlanReport(
        model=model.model,
        method=made.method,
        budget=made.budget,
        path=None if out is None else str(out),
        layer_share=kept / dense,
        parameter_share=(total - dense + kept) / total,
        layers=layer_figures(found, made.ranks),
        left_dense=left_dense(found),
        selection=made.selection,
        budgets=budget_figures(made, subject),
        unmet=made.unmet,
        trials=made.trials,
        notes=loaded.notes,
    )


def compress_model(
    settings: CompressSettings, *, progress: Progress, watch: Stopwatch | None = None
) -> Report:
    """Load, measure, plan, factorize, evaluate, save, report.

    With ``settings.resume`` or ``settings.cache``, what a run computes is kept as it goes, and one
    that was killed ends with the same checkpoint, to the last bit, when it is called again.

    Args:
        settings: What was asked for.
        progress: Told of each step.
        watch: Where time is counted; it is told of each stage as it begins.

    Raises:
        OutputExistsError: If the output exists and may not be replaced.
        UsageError: If a name, pattern, budget or plan is wrong.
        ModelError: If the model cannot be loaded.
        DataError: If the data cannot be read or does not fit the model.
        LayerError: If a layer cannot be measured or factorized.
        BudgetError: If a budget cannot be reached.
        CheckpointError: If the result cannot be written.
    """
    refuse_inputs(settings.out, _inputs(settings.model, settings.data, settings.plan))
    group = current()
    done = finished_before(settings) if group.leads else None
    if group.told(done is not None) and done is None:
        done = finished_before(settings)
    if done is not None:
        progress.note(f"{settings.out} was finished before by this command; nothing is to be done.")
        return done
    refuse_existing(settings.out, overwrite=settings.overwrite)
    method, seed, given = settings.method, settings.seed, None
    if settings.plan is not None:
        given = read_plan(settings.plan)
        seed = given.seed
        method = method.model_copy(
            update={"method": given.method, "gradients": given.gradients, "budget": given.budget}
        )
    _check_names(method)
    watch = watch or Stopwatch()
    loaded = load_run(settings.model, enough_to_judge(settings.data, method), seed, watch, progress)
    subject = subject_run(loaded, method)
    if given is None:
        grant_run(subject, method)  # what cannot be met is refused before anything is measured
    with kept_results(settings, loaded, progress) as cache:
        found = measure_run(loaded, method, seed, watch, progress, cache=cache)
        made = (
            plan_run(found, subject, method, watch, progress)
            if given is None
            else given.bound_to(found)
        )
        return _carry_out(
            settings, loaded, subject, made, watch=watch, progress=progress, cache=cache
        )


def _carry_out(
    settings: CompressSettings,
    loaded: Loaded,
    subject: Subject,
    made: Plan,
    *,
    watch: Stopwatch,
    progress: Progress,
    cache: Cache | None,
) -> Report:
    """Factorize as the plan says, evaluate, save, report."""
    found = made.measurement
    assert found is not None
    with watch.stage("factorize"):
        small = factorize(loaded.model.module, made, progress=progress)
        # From here on the model is what the file will hold, to the last bit.
        round_to_storage_(small, loaded.model.storage_dtypes)
    compressed = replace(loaded.model, module=small)
    with watch.stage("evaluate"):
        dense = evaluate_dense(loaded, progress, cache)
        loaded = _doubted(loaded, dense, progress)
        after = evaluate_run(loaded, small, "evaluate compressed", progress, dense)
    recovery = None
    if settings.recover:
        before = after
        with watch.stage("recover"):
            compressed, done = _recover(loaded, found, compressed, settings.recover, progress)
        with watch.stage("evaluate"):
            after = evaluate_run(loaded, compressed.module, "evaluate recovered", progress, dense)
        recovery = RecoveryFigures(**asdict(done), without=quality_figures(before, loaded.data))
    with watch.stage("time"):
        progress.note("Timing both models.")
        speed = speed_figures(subject, compressed.module)
    report = make_report(
        settings,
        loaded,
        found,
        subject=subject,
        made=made,
        compressed=compressed,
        dense=dense,
        after=after,
        recovery=recovery,
        speed=speed,
        watch=watch,
    )
    if not loaded.forward.group.leads:
        return report
    with watch.stage("save"):
        return save_result(compressed, report, made, settings)


def evaluate_model(
    model: ModelSettings,
    data: DataSettings,
    *,
    evaluations: Sequence[str] = (),
    seed: int,
    progress: Progress,
) -> EvaluationReport:
    """Evaluate any checkpoint, dense or compressed, on the test split and on named tasks.

    Args:
        model: Which model.
        data: Which data; ``data.data`` may be empty where there are tasks.
        evaluations: ``lm-eval:TASK`` each.
        seed: Seed of every draw.
        progress: Told of each batch.

    Raises:
        DataError: If the data carries no labels, or a task cannot be run.
        MissingExtraError: If a task is asked for, and its harness is not installed.
        CompressorError: As `compress_model`.
    """
    tasks = parse_tasks(evaluations)
    watch = Stopwatch()
    if not data.data:
        with watch.stage("load"):
            alone = load_model(model)
        return _evaluated(alone, model, data, tasks, seed=seed, watch=watch, progress=progress)
    loaded = load_run(model, data, seed, watch, progress, splits=("test",))
    if loaded.data.test.labels is None:
        raise DataError(
            f"{data.data} carries no labels, and accuracy needs them. Name the column with "
            "--label-column, or give labelled data."
        )
    with watch.stage("evaluate"):
        found = evaluate_run(loaded, loaded.model.module, "evaluate", progress)
        loaded = _doubted(loaded, found, progress)
    report = _evaluated(loaded.model, model, data, tasks, seed=seed, watch=watch, progress=progress)
    return report.model_copy(
        update={
            "accuracy": found.accuracy,
            "loss": found.loss,
            "samples": found.samples,
            "sha256": loaded.data.test.sha256,
            "flops": flops(loaded),
            "metrics": metric_figures(found),
            "notes": loaded.notes,
            **perplexities(found, loaded.data.test_bytes),
        }
    )


def _evaluated(
    loaded: LoadedModel,
    model: ModelSettings,
    data: DataSettings,
    tasks: Sequence[str],
    *,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
) -> EvaluationReport:
    """Return the report of a model on tasks alone."""
    scores: tuple[TaskFigures, ...] = ()
    if tasks:
        progress.note(f"Running {', '.join(tasks)} in the lm-evaluation-harness.")
        with watch.stage("evaluate"):
            scores = run_tasks(
                loaded,
                tasks,
                batch_size=data.batch_size,
                max_length=data.max_length,
                limit=data.limit,
                seed=seed,
            )
    return EvaluationReport(
        accuracy=None,
        loss=None,
        samples=None,
        sha256=None,
        model=model.model,
        framework=loaded.framework,
        parameters=parameters(loaded.module),
        bytes=loaded.bytes_on_disk,
        flops=None,
        seconds=watch.seconds["evaluate"],
        tasks=scores,
        notes=loaded.notes,
    )


def _inputs(
    model: ModelSettings, data: DataSettings, plan: Path | None = None
) -> tuple[str | Path | None, ...]:
    """Return everything that a run reads, as it was named."""
    return model.model, model.checkpoint, model.factory, data.data, data.test_data, plan


def _check_names(method: MethodSettings) -> None:
    """Refuse unknown names and unreadable budgets before anything is loaded."""
    METHODS.get(method.method)
    RUNTIMES.get(method.runtime)
    for budget in method.budget:
        parse_budget(budget)


def load_run(
    model: ModelSettings,
    data: DataSettings,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
    *,
    splits: Collection[str] = SPLITS,
) -> Loaded:
    """Load a model and its data."""
    with watch.stage("load"):
        found = load_model(model)
        for note in found.notes:
            progress.note(note)
        labelled = load_data(data, found, seed=seed, splits=splits, progress=progress)
    device = default_device(found.module)
    forward = Forward(classes=labelled.classes, device=device, group=current())
    if found.task != "classification":
        if current().size > 1:
            raise UsageError(
                "Passes over models that predict tokens are not shared between processes yet. "
                "Start the command without torchrun."
            )
        forward = TokenForward(device=device)
    return Loaded(found, labelled, forward)


def measure_run(
    loaded: Loaded,
    method: MethodSettings,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
    *,
    cache: Cache | None = None,
) -> Measurement:
    """Measure the model on its calibration data, as a method's settings ask."""
    with watch.stage("measure"):
        return measure(
            loaded.model.module,
            loaded.data.calibration,
            selection=loaded.data.selection if len(loaded.data.selection) else None,
            method=method.method,
            gradients=method.gradients,
            classes=len(loaded.data.class_names) or None,
            forward=loaded.forward,
            heads=loaded.model.heads,
            include=method.include,
            exclude=method.exclude,
            seed=seed,
            cache=cache,
            blockwise=method.blockwise,
            progress=progress,
        )


def enough_to_judge(data: DataSettings, method: MethodSettings) -> DataSettings:
    """Return data settings with selection samples enough to tell a point of accuracy.

    Only a ``drop=`` budget asks for that; the promise is judged by an interval that many samples
    make narrow.
    """
    asked = any(parse_budget(budget).kind == "drop" for budget in method.budget)
    if not asked or data.selection is not None:
        return data
    return data.model_copy(update={"selection": SELECTION_TO_JUDGE})


def subject_run(loaded: Loaded, method: MethodSettings) -> Subject:
    """Return what budgets are counted on: the model, its candidates, and inputs like the data's.

    Raises:
        ModelError: If no layer can be factorized.
        UsageError: If a pattern matches no layer.
    """
    probe = probe_inputs(loaded.data.calibration, loaded.forward.device)
    module = unfused(loaded.model.module.eval(), probe)
    candidates = candidates_of(
        module,
        probe,
        heads=loaded.model.heads,
        include=method.include,
        exclude=method.exclude,
    )
    length = example_length(loaded)
    return Subject(
        model=module,
        candidates=candidates,
        inputs=lambda samples: loaded.model.example_inputs(batch_size=samples, length=length),
        storage_dtypes=loaded.model.storage_dtypes,
        forward=loaded.forward,
        runtime=method.runtime,
    )


def grant_run(subject: Subject, method: MethodSettings) -> Granted:
    """Return what the budgets allow, as far as it can be told before anything is measured.

    Raises:
        BudgetError: If a budget cannot be met, and no best effort was asked for.
    """
    return granted(
        [parse_budget(budget) for budget in method.budget],
        subject,
        multiple=method.rank_multiple,
        best_effort=method.best_effort,
    )


def plan_run(
    found: Measurement,
    subject: Subject,
    method: MethodSettings,
    watch: Stopwatch,
    progress: Progress,
) -> Plan:
    """Choose ranks as a method's settings ask."""
    with watch.stage("plan"):
        return plan(
            found,
            method.budget,
            method=method.method,
            rank_multiple=method.rank_multiple,
            best_effort=method.best_effort,
            subject=subject,
            progress=progress,
        )


def evaluate_run(
    loaded: Loaded,
    module: nn.Module,
    description: str,
    progress: Progress,
    dense: Evaluation | None = None,
) -> Evaluation:
    """Evaluate a module on the test data, beside the dense model's logits where they are given."""
    test = loaded.data.test
    return evaluate(
        module,
        test,
        forward=loaded.forward,
        dense_logits=None if dense is None else dense.logits,
        progress=progress,
        description=description,
        total=-(-len(test) // test.batch_size),
    )


def evaluate_dense(loaded: Loaded, progress: Progress, cache: Cache | None) -> Evaluation:
    """Evaluate the dense model on the test data, or score the logits that a cache holds of it."""

    def found() -> Evaluation:
        return evaluate_run(loaded, loaded.model.module, "evaluate dense", progress)

    if cache is None or isinstance(loaded.forward, TokenForward):
        return found()  # logits of tokens are too many to keep

    def make() -> Tensors:
        logits = found().logits
        assert isinstance(logits, Tensor)
        return {"logits": logits}

    test = loaded.data.test
    return score(cache.tensors("logits", {"split": test.sha256}, make)["logits"], test.labels)


def _doubted(loaded: Loaded, found: Evaluation, progress: Progress) -> Loaded:
    """Return the model with a note where it does no better than guessing."""
    notes = doubts(found, len(loaded.data.class_names))
    for note in notes:
        progress.note(note)
    return replace(loaded, model=replace(loaded.model, notes=(*loaded.model.notes, *notes)))


def _recover(
    loaded: Loaded,
    found: Measurement,
    compressed: LoadedModel,
    steps: int,
    progress: Progress,
) -> tuple[LoadedModel, Recovery]:
    module, done = recover(
        compressed.module,
        loaded.model.module,
        found.calibration,
        steps,
        selection=found.selection,
        forward=loaded.forward,
        progress=progress,
    )
    round_to_storage_(module, loaded.model.storage_dtypes)
    return replace(compressed, module=module), done


__all__ = [
    "Stopwatch",
    "compress_model",
    "evaluate_dense",
    "evaluate_model",
    "evaluate_run",
    "inspect_model",
    "load_run",
    "measure_run",
    "plan_model",
]
