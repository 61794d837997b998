"""The result of a compression: its report, and the directory that holds it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from compressor.checkpoint.card import model_card
from compressor.checkpoint.save import save_directory
from compressor.evaluation.loop import Evaluation
from compressor.evaluation.metrics.metric import METRICS
from compressor.evaluation.paired import paired_loss
from compressor.figures import Loaded, data_figures, left_dense, model_figures, versions
from compressor.methods.budget import liked_by_all, parse_budget
from compressor.methods.frontier import predicted_frontier
from compressor.methods.measurement import Measurement
from compressor.methods.outcome import layer_figures
from compressor.methods.plan import Plan
from compressor.methods.subject import Subject
from compressor.models import LoadedModel
from compressor.models.architectures import auto_name
from compressor.pipeline.budgets import budget_figures
from compressor.report.html import report_page
from compressor.saving import lowrank_config
from compressor.schema import REPORT_FILE, PairedLoss, RecoveryFigures, Report, SpeedFigures
from compressor.settings import CompressSettings
from compressor.stopwatch import Stopwatch


def make_report(
    settings: CompressSettings,
    loaded: Loaded,
    found: Measurement,
    *,
    subject: Subject,
    made: Plan,
    compressed: LoadedModel,
    dense: Evaluation,
    after: Evaluation,
    recovery: RecoveryFigures | None,
    speed: SpeedFigures | None,
    watch: Stopwatch,
) -> Report:
    """Return the report of a finished compression.

    Args:
        settings: What was asked for.
        loaded: The dense model and the data.
        found: What was measured.
        subject: What budgets are counted on.
        made: The plan that was carried out.
        compressed: The model that will be saved.
        dense: How the dense model fares on the test data.
        after: How the model that will be saved fares there.
        speed: How fast both models were.
        recovery: What training did after the truncation, where there was any.
        watch: The time that each stage took.
    """
    with watch.stage("report"):
        layers = layer_figures(found, made.ranks, compressed.module, made.recipe)
        frontier = predicted_frontier(
            found,
            made.ranks,
            made.recipe,
            multiple=liked_by_all(
                [parse_budget(budget) for budget in made.budget],
                subject,
                multiple=settings.method.rank_multiple,
            ),
        )
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
        budgets=budget_figures(made, subject),
        unmet=made.unmet,
        trials=made.trials,
        losses=losses(dense, after),
        frontier=frontier,
        speed=speed,
        norm_correction=made.recipe.norm_correction,
        recovery=recovery,
        seconds=watch.seconds,
        out=str(settings.out),
        job=settings.job,
        notes=(*loaded.notes, *loaded.forward.room.notes),
    )


def losses(dense: Evaluation, after: Evaluation) -> tuple[PairedLoss, ...]:
    """Return what the compressed model loses on the test data of each metric, with 95 % intervals.

    Args:
        dense: How the dense model fares there.
        after: How the compressed one does.
    """
    first, second = dense.predictions, after.predictions
    if first is None or second is None:
        return ()
    found = {
        name: paired_loss(metric, first, second, level=0.95) for name, metric in METRICS.items()
    }
    return tuple(
        PairedLoss(
            metric=name,
            unit=METRICS.get(name).unit,
            value=loss.value,
            low=loss.low,
            high=loss.high,
        )
        for name, loss in found.items()
        if loss is not None
    )


def save_result(
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
            REPORT_FILE: written[-1].model_dump_json(indent=2) + "\n",
            "report.html": report_page(written[-1]),
            "README.md": model_card(
                written[-1], auto_class=auto_name(type(compressed.module).__name__)
            ),
        }

    save_directory(
        compressed,
        settings.out,
        lowrank=lowrank_config(compressed.module),
        extra_files=texts,
        overwrite=settings.overwrite,
    )
    return written[-1]
