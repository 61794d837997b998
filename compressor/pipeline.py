"""The stages in order, from what a person names to what is saved: what the commands call."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from torch import nn

from compressor.checkpoint.card import model_card
from compressor.checkpoint.save import (
    refuse_existing,
    refuse_existing_file,
    save_directory,
    write_file,
)
from compressor.checkpoint.storage import round_to_storage_
from compressor.data import load_data
from compressor.errors import DataError
from compressor.evaluation.loop import Evaluation, evaluate
from compressor.figures import (
    Loaded,
    data_figures,
    flops,
    left_dense,
    model_figures,
    parameters,
    versions,
)
from compressor.forward import Forward
from compressor.inspection import inspect_model
from compressor.measuring import measured_layers
from compressor.methods.budget import parse_budget
from compressor.methods.measurement import Measurement, default_device
from compressor.methods.method import METHODS
from compressor.methods.outcome import layer_figures
from compressor.methods.plan import Plan, read_plan
from compressor.models import LoadedModel, load_model
from compressor.progress import Progress
from compressor.report.html import report_page
from compressor.saving import lowrank_config
from compressor.schema import (
    EvaluationReport,
    MeasurementReport,
    PlanReport,
    Report,
)
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings
from compressor.stages import factorize, measure, plan


@dataclass
class Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent in the block to ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[name] = round(self.seconds.get(name, 0.0) + spent, 3)


def measure_model(
    model: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    *,
    seed: int,
    progress: Progress,
) -> MeasurementReport:
    """Measure collapse and rank of every candidate layer.

    Raises:
        CompressorError: As `compress_model`.
    """
    watch = Stopwatch()
    loaded = load_run(model, data, seed, watch, progress)
    # Collapse needs no gradients, so none are taken whatever the method.
    forward_only = method.model_copy(update={"method": "whitened", "gradients": False})
    found = measure_run(loaded, forward_only, seed, watch, progress)
    assert found.statistics is not None
    with watch.stage("metrics"):
        layers = measured_layers(found)
    return MeasurementReport(
        model=model.model,
        framework=loaded.model.framework,
        seed=seed,
        data=data_figures(loaded.data),
        labels="clusters" if found.statistics.clustered else "given",
        versions=versions(),
        layers=layers,
        left_dense=left_dense(found),
        notes=loaded.notes,
        seconds=watch.seconds,
    )


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
        refuse_existing_file(out, overwrite=overwrite)
    _check_names(method)
    watch = Stopwatch()
    loaded = load_run(model, data, seed, watch, progress)
    found = measure_run(loaded, method, seed, watch, progress)
    made = _plan(found, method, watch, progress)
    if out is not None:
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
        notes=loaded.notes,
    )


def compress_model(settings: CompressSettings, *, progress: Progress) -> Report:
    """Load, measure, plan, factorize, evaluate, save, report.

    Raises:
        OutputExistsError: If the output exists and may not be replaced.
        UsageError: If a name, pattern, budget or plan is wrong.
        ModelError: If the model cannot be loaded.
        DataError: If the data cannot be read or does not fit the model.
        LayerError: If a layer cannot be measured or factorized.
        BudgetError: If a budget cannot be reached.
        CheckpointError: If the result cannot be written.
    """
    refuse_existing(settings.out, overwrite=settings.overwrite)
    method, seed, given = settings.method, settings.seed, None
    if settings.plan is not None:
        given = read_plan(settings.plan)
        seed = given.seed
        method = method.model_copy(
            update={"method": given.method, "gradients": given.gradients, "budget": given.budget}
        )
    else:
        _check_names(method)
    watch = Stopwatch()
    loaded = load_run(settings.model, settings.data, seed, watch, progress)
    found = measure_run(loaded, method, seed, watch, progress)
    made = _plan(found, method, watch, progress) if given is None else given.bound_to(found)
    with watch.stage("factorize"):
        small = factorize(loaded.model.module, made, progress=progress)
        # From here on the model is what the file will hold, to the last bit.
        round_to_storage_(small, loaded.model.storage_dtypes)
    compressed = replace(loaded.model, module=small)
    with watch.stage("evaluate"):
        dense = evaluate_run(loaded, loaded.model.module, "evaluate dense", progress)
        after = evaluate_run(loaded, small, "evaluate compressed", progress, dense)
    report = _report(
        settings,
        loaded,
        found,
        made=made,
        compressed=compressed,
        dense=dense,
        after=after,
        watch=watch,
    )
    with watch.stage("save"):
        return _save(compressed, report, made, settings)


def evaluate_model(
    model: ModelSettings, data: DataSettings, *, seed: int, progress: Progress
) -> EvaluationReport:
    """Evaluate any checkpoint, dense or compressed, on the test split.

    Raises:
        DataError: If the data carries no labels.
        CompressorError: As `compress_model`.
    """
    watch = Stopwatch()
    loaded = load_run(model, data, seed, watch, progress)
    if loaded.data.test.labels is None:
        raise DataError(
            f"{data.data} carries no labels, and accuracy needs them. Name the column with "
            "--label-column, or give labelled data."
        )
    with watch.stage("evaluate"):
        found = evaluate_run(loaded, loaded.model.module, "evaluate", progress)
    return EvaluationReport(
        accuracy=found.accuracy,
        loss=found.loss,
        samples=found.samples,
        sha256=loaded.data.test.sha256,
        model=model.model,
        framework=loaded.model.framework,
        parameters=parameters(loaded.model.module),
        bytes=loaded.model.bytes_on_disk,
        flops=flops(loaded),
        seconds=watch.seconds["evaluate"],
        notes=loaded.notes,
    )


def _check_names(method: MethodSettings) -> None:
    """Refuse unknown names and unreadable budgets before anything is loaded."""
    METHODS.get(method.method)
    for budget in method.budget:
        parse_budget(budget)


def load_run(
    model: ModelSettings, data: DataSettings, seed: int, watch: Stopwatch, progress: Progress
) -> Loaded:
    """Load a model and its data."""
    with watch.stage("load"):
        found = load_model(model)
        for note in found.notes:
            progress.note(note)
        labelled = load_data(data, found, seed=seed, progress=progress)
    forward = Forward(classes=labelled.classes, device=default_device(found.module))
    return Loaded(found, labelled, forward)


def measure_run(
    loaded: Loaded, method: MethodSettings, seed: int, watch: Stopwatch, progress: Progress
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
            progress=progress,
        )


def _plan(found: Measurement, method: MethodSettings, watch: Stopwatch, progress: Progress) -> Plan:
    with watch.stage("plan"):
        return plan(
            found,
            method.budget,
            method=method.method,
            rank_multiple=method.rank_multiple,
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


def _report(
    settings: CompressSettings,
    loaded: Loaded,
    found: Measurement,
    *,
    made: Plan,
    compressed: LoadedModel,
    dense: Evaluation,
    after: Evaluation,
    watch: Stopwatch,
) -> Report:
    with watch.stage("report"):
        layers = layer_figures(found, made.ranks, compressed.module, made.recipe)
    kept = sum(layer.parameters for layer in layers)
    return Report(
        model=settings.model.model,
        framework=loaded.model.framework,
        modality=loaded.model.modality,
        model_sha256=loaded.model.sha256,
        method=made.method,
        budget=made.budget,
        seed=made.seed,
        device=str(loaded.forward.device),
        command=settings.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        data=data_figures(loaded.data),
        dense=model_figures(
            loaded, dense, found.candidates.layer_parameters, loaded.model.bytes_on_disk
        ),
        compressed=model_figures(replace(loaded, model=compressed), after, kept, None),
        layers=layers,
        left_dense=left_dense(found),
        selection=made.selection,
        norm_correction=made.recipe.norm_correction,
        seconds=watch.seconds,
        out=str(settings.out),
        notes=loaded.notes,
    )


def _save(
    compressed: LoadedModel, report: Report, made: Plan, settings: CompressSettings
) -> Report:
    """Save the directory; the report inside it tells the size of the weights beside it."""

    def with_bytes(size: int) -> Report:
        figures = report.compressed.model_copy(update={"bytes": size})
        return report.model_copy(update={"compressed": figures})

    written: list[Report] = []

    def texts(size: int) -> dict[str, str]:
        written.append(with_bytes(size))
        return {
            "plan.json": made.model_dump_json(indent=2) + "\n",
            "report.json": written[-1].model_dump_json(indent=2) + "\n",
            "report.html": report_page(written[-1]),
            "README.md": model_card(written[-1], auto_class=_auto_class(compressed)),
        }

    save_directory(
        compressed,
        settings.out,
        lowrank=lowrank_config(compressed.module),
        extra_files=texts,
        overwrite=settings.overwrite,
    )
    return written[-1]


def _auto_class(model: LoadedModel) -> str:
    kind = "Image" if model.modality == "image" else "Sequence"
    return f"AutoModelFor{kind}Classification"


__all__ = [
    "Stopwatch",
    "compress_model",
    "evaluate_model",
    "evaluate_run",
    "inspect_model",
    "load_run",
    "measure_model",
    "measure_run",
    "plan_model",
]
