"""`measure`: collapse and rank of one checkpoint."""

from __future__ import annotations

from dataclasses import replace

from compressor.data import CALIBRATION
from compressor.figures import Loaded, data_figures, left_dense, versions
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.layers.surgery import densify, structural_copy
from compressor.measuring import measured_layers
from compressor.methods.measurement import Measurement
from compressor.pipeline.steps import load_run, measure_run
from compressor.progress import Progress
from compressor.schema import MeasurementReport
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
    loaded, found = measured(
        model, data, method, stationarity=stationarity, seed=seed, watch=watch, progress=progress
    )
    return measurement_report(model, loaded, found, seed, watch)


def measured(
    model: ModelSettings,
    data: DataSettings,
    method: MethodSettings,
    *,
    stationarity: bool,
    seed: int,
    watch: Stopwatch,
    progress: Progress,
) -> tuple[Loaded, Measurement]:
    """Load a checkpoint, dense or factorized, and measure it on its calibration data."""
    if data.limit is not None:
        data = data.model_copy(
            update={"calibration": min(data.calibration or CALIBRATION, data.limit)}
        )
    loaded = _multiplied(load_run(model, data, seed, watch, progress))
    wanted = {
        "method": BACKWARD if stationarity else FORWARD,
        "gradients": stationarity,
        "conv_form": "channel",  # collapse is that of the layer, whatever form it may take
    }
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


def measurement_report(
    model: ModelSettings, loaded: Loaded, found: Measurement, seed: int, watch: Stopwatch
) -> MeasurementReport:
    """Return the figures of every layer that was measured, and what they rest on."""
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
