"""What is told of a checkpoint that was compressed in parts."""

from __future__ import annotations

from datetime import UTC, datetime

from compressor.data import LabelledData
from compressor.evaluation.loop import Evaluation
from compressor.figures import data_figures, quality_figures, versions
from compressor.layers.candidates import Candidates
from compressor.methods.plan import Plan
from compressor.models.weights import find_weight_files, size_of
from compressor.schema import DenseLayer, QualityFigures
from compressor.settings import StreamSettings
from compressor.stopwatch import Stopwatch
from compressor.streaming.checkpoint import Checkpoint
from compressor.streaming.schema import StreamedLayer, StreamReport


def streamed_report(
    settings: StreamSettings,
    checkpoint: Checkpoint,
    candidates: Candidates,
    made: Plan,
    *,
    data: LabelledData | None,
    pair: tuple[Evaluation, Evaluation] | None,
    watch: Stopwatch,
    parameters: int,
    size: int,
) -> StreamReport:
    """Return the report of a finished run.

    Args:
        settings: What was asked for.
        checkpoint: The dense model.
        candidates: Its layers, but for those that no data reached.
        made: The plan that was carried out.
        data: The windows it was measured and evaluated on, if there were any.
        pair: How the dense model fares on the test windows, and how the one that was written does.
        watch: The time that each stage took.
        parameters: Of the one that was written.
        size: Of its weight files in bytes.
    """
    units = checkpoint.units
    layers = []
    for name, layer in candidates.layers.items():
        rank = layer.kept(made.ranks.get(name, layer.full_rank))
        layers.append(
            StreamedLayer(
                name=name,
                kind=layer.kind,
                shape=layer.shape,
                rank=rank,
                full_rank=layer.full_rank,
                parameters=layer.cost(rank),
            )
        )
    qualities: tuple[QualityFigures | None, ...] = (None, None)
    if pair is not None and data is not None:
        qualities = tuple(quality_figures(found, data) for found in pair)
    return StreamReport(
        model=settings.model.model,
        method=made.method,
        budget=made.budget,
        command=settings.command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions(),
        parameters=candidates.parameters,
        compressed_parameters=parameters,
        layer_share=sum(layer.parameters for layer in layers) / candidates.layer_parameters,
        bytes=size_of(find_weight_files(checkpoint.directory)),
        compressed_bytes=size,
        units=len(units),
        largest_unit=max(sum(units.sizes[name] for name in unit.tensors) for unit in units),
        data=None if data is None else data_figures(data),
        dense=qualities[0],
        compressed=qualities[1],
        layers=tuple(layers),
        left_dense=tuple(
            DenseLayer(name=name, reason=reason) for name, reason in candidates.left_dense.items()
        ),
        selection=made.selection,
        unmet=made.unmet,
        seconds=watch.seconds,
        out=str(settings.out),
        notes=_notes(made, data),
    )


def _notes(made: Plan, data: LabelledData | None) -> tuple[str, ...]:
    notes = () if data is None else data.notes
    if made.selection:
        notes = (
            *notes,
            "Recipes were judged on the selection windows without the sequential refit, which "
            "needs the dense and the compressed model in memory together.",
        )
    return notes
