"""`compare`: how collapse and rank moved from one checkpoint to another."""

from __future__ import annotations

from compressor.errors import UsageError
from compressor.layers.candidates import Candidates
from compressor.layers.kinds import LAYER_KINDS
from compressor.measuring import agreement, change
from compressor.methods.measurement import Measurement
from compressor.pipeline.measure import measured, measurement_report
from compressor.progress import Once, Progress
from compressor.schema import ComparisonReport, LayerChange, MeasurementReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings
from compressor.stopwatch import Stopwatch


def compare_models(
    before: ModelSettings,
    after: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    *,
    stationarity: bool = False,
    seed: int,
    progress: Progress,
) -> ComparisonReport:
    """Measure two checkpoints on the same samples, layer by layer.

    Layers are matched by name; those of another shape count as different ones.

    Args:
        before: The first checkpoint.
        after: The second.
        data: Which data; each checkpoint prepares it in its own way.
        method: Patterns of layers to take or leave; the rest is not read.
        stationarity: As for `measure_model`.
        seed: Seed of the split.
        progress: Told of each batch, and once of what is the same for both.

    Raises:
        UsageError: If the checkpoints share no layer, or a pattern is unknown.
        CompressorError: As `measure_model`.
    """
    watches = Stopwatch(), Stopwatch()
    told_once = Once(progress)
    (first_loaded, first), (second_loaded, other) = (
        measured(
            model,
            data,
            method,
            stationarity=stationarity,
            seed=seed,
            watch=watch,
            progress=told_once,
        )
        for model, watch in zip((before, after), watches, strict=True)
    )
    reports = (
        measurement_report(before, first_loaded, first, seed, watches[0]),
        measurement_report(after, second_loaded, other, seed, watches[1]),
    )
    known = {layer.name: layer for layer in reports[1].layers}
    modules = [dict(found.model.named_modules()) for found in (first, other)]
    changes = []
    for layer in reports[0].layers:
        match = known.get(layer.name)
        if match is None or match.shape != layer.shape:
            continue
        kind = LAYER_KINDS.get(layer.kind)
        matrices = [kind.matrix(found[layer.name]).cpu() for found in modules]
        changes.append(
            LayerChange(
                name=layer.name,
                weight_change=change(*matrices),
                before=layer,
                after=match,
            )
        )
    if not changes:
        raise UsageError(
            f"{before.model} and {after.model} share no layer of the same name and shape. Compare "
            "checkpoints of one architecture."
        )
    shared = {layer.name for layer in changes}
    alike, divergence, notes = _predictions(reports, first, other)
    return ComparisonReport(
        before=reports[0],
        after=reports[1],
        layers=tuple(changes),
        agreement=alike,
        kl=divergence,
        only_before=tuple(name for name in _names(first.candidates) if name not in shared),
        only_after=tuple(name for name in _names(other.candidates) if name not in shared),
        notes=notes,
        seconds={
            stage: sum(watch.seconds.get(stage, 0.0) for watch in watches)
            for stage in watches[0].seconds
        },
    )


def _predictions(
    reports: tuple[MeasurementReport, MeasurementReport], first: Measurement, second: Measurement
) -> tuple[float | None, float | None, tuple[str, ...]]:
    """Return agreement, KL, and what stands between comparing the two."""
    if reports[0].data.calibration.sha256 != reports[1].data.calibration.sha256:
        return None, None, ("The two were measured on different samples: figures do not compare.",)
    statistics = first.statistics, second.statistics
    assert statistics[0] is not None
    assert statistics[1] is not None
    logits = statistics[0].logits, statistics[1].logits
    if not len(logits[0]) or logits[0].shape != logits[1].shape:
        return None, None, ()
    return *agreement(*logits), ()


def _names(candidates: Candidates) -> list[str]:
    return list(candidates.layers)
