"""`measure` and `compare`: collapse and rank of one checkpoint, and how they moved to another."""

from __future__ import annotations

from dataclasses import replace

from compressor.data import CALIBRATION
from compressor.errors import UsageError
from compressor.figures import Loaded, data_figures, left_dense, versions
from compressor.layers.candidates import Candidates
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.layers.surgery import densify, structural_copy
from compressor.measuring import agreement, change, measured_layers
from compressor.methods.measurement import Measurement
from compressor.pipeline import load_run, measure_run
from compressor.progress import Progress
from compressor.schema import ComparisonReport, LayerChange, MeasurementReport
from compressor.settings import DataSettings, MethodSettings, ModelSettings
from compressor.stopwatch import Stopwatch

FORWARD, BACKWARD = "whitened", "fwsvd"
"""Methods that gather what collapse needs, without and with the loss's gradients."""


def measure_model(
    model: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    *,
    stationarity: bool = False,
    seed: int,
    progress: Progress,
) -> MeasurementReport:
    """Measure collapse and rank of every candidate layer.

    Layers that are factorized already are measured as the dense layers their factors multiply to.
    A limit bounds the calibration samples too: there is nothing else that it could bound here.

    Args:
        model: Which model.
        data: Which data.
        method: Patterns of layers to take or leave; the rest is not read.
        stationarity: Run backwards too, and tell how near each layer is to a critical point of the
            L2-regularized loss.
        seed: Seed of the split.
        progress: Told of each batch.

    Raises:
        ModelError: If the model cannot be loaded, or no layer can be measured.
        DataError: If the data cannot be read or does not fit the model.
        LayerError: If a layer's rows are not finite.
        UsageError: If a pattern is unknown.
    """
    watch = Stopwatch()
    loaded, found = _measured(
        model, data, method, stationarity=stationarity, seed=seed, watch=watch, progress=progress
    )
    return _report(model, loaded, found, seed, watch)


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
        progress: Told of each batch.

    Raises:
        UsageError: If the checkpoints share no layer, or a pattern is unknown.
        CompressorError: As `measure_model`.
    """
    watches = Stopwatch(), Stopwatch()
    (first_loaded, first), (second_loaded, other) = (
        _measured(
            model,
            data,
            method,
            stationarity=stationarity,
            seed=seed,
            watch=watch,
            progress=progress,
        )
        for model, watch in zip((before, after), watches, strict=True)
    )
    reports = (
        _report(before, first_loaded, first, seed, watches[0]),
        _report(after, second_loaded, other, seed, watches[1]),
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


def _measured(
    model: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    *,
    stationarity: bool,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[Loaded, Measurement]:
    if data.limit is not None:
        data = data.model_copy(
            update={"calibration": min(data.calibration or CALIBRATION, data.limit)}
        )
    loaded = _multiplied(load_run(model, data, seed, watch, progress))
    wanted = {"method": BACKWARD if stationarity else FORWARD, "gradients": stationarity}
    return loaded, measure_run(loaded, method.model_copy(update=wanted), seed, watch, progress)


def _multiplied(loaded: Loaded) -> Loaded:
    """Return the model with every factorized layer multiplied back, and a note of how many."""
    module = loaded.model.module
    factorized = sum(isinstance(part, LOW_RANK_TYPES) for part in module.modules())
    if not factorized:
        return loaded
    dense = structural_copy(module).eval()
    densify(dense)
    note = f"{factorized} factorized layers are measured as the products of their factors."
    model = replace(loaded.model, module=dense, notes=(*loaded.model.notes, note))
    return replace(loaded, model=model)


def _report(
    model: ModelSettings, loaded: Loaded, found: Measurement, seed: int, watch: Stopwatch
) -> MeasurementReport:
    statistics = found.statistics
    assert statistics is not None
    with watch.stage("metrics"):
        layers = measured_layers(found)
    accuracy = None
    if not statistics.clustered and len(statistics.logits):
        accuracy = float((statistics.logits.argmax(1) == statistics.labels).double().mean())
    return MeasurementReport(
        model=model.model,
        framework=loaded.model.framework,
        seed=seed,
        data=data_figures(loaded.data),
        labels="clusters" if statistics.clustered else "given",
        accuracy=accuracy,
        versions=versions(),
        layers=layers,
        left_dense=left_dense(found),
        notes=loaded.notes,
        seconds=watch.seconds,
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
