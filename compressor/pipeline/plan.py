"""`plan`: choose ranks, and write them down."""

from __future__ import annotations

from pathlib import Path

from compressor.checkpoint.save import refuse_existing_file, refuse_inputs, write_file
from compressor.figures import left_dense
from compressor.methods.outcome import layer_figures
from compressor.pipeline.budgets import budget_figures
from compressor.pipeline.request import check_names, inputs_of
from compressor.pipeline.steps import grant_run, load_run, measure_run, plan_run, subject_run
from compressor.progress import Progress
from compressor.schema import PlanReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings
from compressor.stopwatch import Stopwatch


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
        refuse_inputs(out, inputs_of(model, data))
        refuse_existing_file(out, overwrite=overwrite)
    check_names(method)
    watch = Stopwatch()
    loaded = load_run(model, data, seed, watch, progress, method=method)
    subject = subject_run(loaded, method)
    grant_run(subject, method)  # what cannot be met is refused before anything is measured
    found = measure_run(loaded, method, seed, watch, progress)
    made = plan_run(found, subject, method, watch, progress)
    found = made.measurement or found
    subject = subject.of(found.candidates)
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
