"""Measuring a model on calibration data with no more than one block of it in memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from compressor.cache import Cache
from compressor.calibration import probe_inputs
from compressor.collapse.block_capture import capture_blocks
from compressor.collapse.capture import frozen
from compressor.collapse.residency import check_chain
from compressor.data import LabelledData, load_data
from compressor.errors import UsageError
from compressor.forward import Forward
from compressor.gathering import reached
from compressor.methods.metrics import Needs
from compressor.progress import Progress
from compressor.settings import StreamSettings
from compressor.streaming.checkpoint import Checkpoint
from compressor.streaming.judging import Judge
from compressor.streaming.measurement import StreamedMeasurement
from compressor.streaming.runnable import Runnable, runnable
from compressor.tokens import TokenForward, uncached

_JOURNAL = "journal.json"


def load_streamed_data(
    settings: StreamSettings, checkpoint: Checkpoint, *, seed: int, progress: Progress
) -> LabelledData | None:
    """Return the windows of text that were named; None if none were.

    Raises:
        UsageError: If the model predicts no tokens.
        DataError: If there is no such data, or too little of it.
    """
    if settings.data is None:
        return None
    if checkpoint.loaded.task == "classification":
        raise UsageError(
            f"--stream runs language models block by block, and {settings.model.model} predicts "
            "classes. Leave out --stream; or leave out --data, and take --method svd-energy."
        )
    return load_data(settings.data, checkpoint.loaded, seed=seed, progress=progress)


def dense_runnable(checkpoint: Checkpoint) -> Runnable:
    """Return the dense model, ready to be run block by block."""
    units = checkpoint.units
    return runnable(
        checkpoint.loaded,
        units.shapes,
        units=units.names,
        read=units.read,
        buffers=checkpoint.weights.names,
    )


def measured(
    checkpoint: Checkpoint,
    dense: Runnable | None,
    data: LabelledData | None,
    needs: Needs,
    *,
    seed: int,
    scratch: Path,
    cache: Cache | None,
    progress: Progress,
) -> StreamedMeasurement:
    """Return what a method asks to be measured.

    Args:
        checkpoint: The dense model.
        dense: The same, ready to be run; None without data.
        data: Windows of text; None where the model is not run.
        needs: What the method needs.
        seed: Seed of every draw.
        scratch: A directory for statistics, hidden states and decompositions. What an earlier run
            left there is taken up.
        cache: Where judgements are kept.
        progress: Told of each part.

    Raises:
        ModelError: If a block computes something else by itself.
    """
    kept = scratch / "statistics"
    if dense is not None and data is not None and not (kept / _JOURNAL).is_file():
        _check(dense, data, progress)
    if dense is None or data is None or needs == "weights":
        return StreamedMeasurement(
            model=checkpoint.units.shapes,
            candidates=checkpoint.candidates,
            statistics=None,
            calibration=(),
            selection=None,
            forward=Forward(),
            gradients=False,
            seed=seed,
            units=checkpoint.units,
        )
    statistics = capture_blocks(
        dense.model,
        data.calibration,
        checkpoint.candidates,
        forward=TokenForward(),
        chain=dense.chain,
        gradients=needs == "gradients",
        loss=needs == "loss",
        seed=seed,
        residency=dense.residency,
        kept=kept,
        progress=progress,
    )
    selection = data.selection if len(data.selection) else None
    judge = None
    if selection is not None:
        judge = Judge(
            checkpoint.loaded, dense, checkpoint.units, selection, scratch, progress=progress
        )
    return StreamedMeasurement(
        model=checkpoint.units.shapes,
        candidates=reached(checkpoint.candidates, statistics),
        statistics=statistics,
        calibration=data.calibration,
        selection=selection,
        forward=TokenForward(),
        gradients=needs == "gradients",
        seed=seed,
        cache=cache,
        conv_form="channel",
        units=checkpoint.units,
        factors=scratch / "factors",
        judge_on_disk=judge,
    )


def _check(dense: Runnable, data: LabelledData, progress: Progress) -> None:
    """Make sure that blocks can be run one by one, before anything is measured or written."""
    forward = TokenForward()
    probe = probe_inputs(data.calibration, forward.device)
    with frozen(dense.model), uncached(dense.model):
        call = partial(forward, dense.model, probe)
        progress.note("Comparing each block by itself with the same in the whole model.")
        check_chain(dense.chain, call, dense.residency)
