"""`compress` from Python: every stage in one call, on objects in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import nn

from compressor.calibration import replayable
from compressor.evaluation.loop import Evaluation, evaluate
from compressor.forward import Batch, Batches
from compressor.layers.candidates import ConvForm
from compressor.methods.plan import Plan
from compressor.progress import SILENT, Progress
from compressor.saving import save
from compressor.stages import factorize, measure, plan


@dataclass(frozen=True)
class Compression:
    """A compressed model and how it compares.

    Args:
        model: The factorized model; tensors that did not change are shared with the dense one.
        plan: The ranks and how they came about.
        dense: The dense model on the test batches, None where there were none.
        compressed: The factorized model on the test batches, None where there were none.
    """

    model: nn.Module = field(repr=False)
    plan: Plan
    dense: Evaluation | None
    compressed: Evaluation | None


def compress(
    model: nn.Module,
    batches: Iterable[Batch],
    budget: str | Sequence[str],
    *,
    test: Batches | None = None,
    selection: Batches | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    method: str = "nc1",
    gradients: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    conv_form: ConvForm | None = None,
    rank_multiple: int = 1,
    classes: int | None = None,
    seed: int = 0,
    blockwise: bool = False,
    progress: Progress = SILENT,
) -> Compression:
    """Measure, plan, factorize, evaluate and save a model in one call.

    Args:
        model: Any module whose output holds class logits [B, C], or logits of tokens [B, T, V].
        batches: Calibration batches (inputs, labels [B] or None; of tokens, labels [B, T]).
        budget: One or several budgets, for instance ``"layers=50%"``.
        test: Batches to compare both models on.
        selection: Held-out batches that choices are judged on; None holds out every fourth of
            ``batches``.
        out: Directory to save to.
        overwrite: Replace ``out`` if this package wrote it.
        method: Registered method.
        gradients: Allow a backward pass over the calibration batches.
        include: Patterns of layers to take though they would be left dense by default.
        exclude: Patterns of layers to leave dense.
        conv_form: Form of convolutions k×k, as in `measure`.
        rank_multiple: Ranks are multiples of this.
        classes: Number of classes; None takes the width of the logits.
        seed: Seed of every draw.
        blockwise: Measure a model that predicts tokens one block at a time, to save memory.
        progress: Told of each step.

    Raises:
        CompressorError: As `measure`, `plan`, `factorize` and `save`.
    """
    measurement = measure(
        model,
        batches,
        selection=selection,
        method=method,
        gradients=gradients,
        classes=classes,
        include=include,
        exclude=exclude,
        conv_form=conv_form,
        seed=seed,
        blockwise=blockwise,
        progress=progress,
    )
    made = plan(measurement, budget, method=method, rank_multiple=rank_multiple, progress=progress)
    small = factorize(model, made, progress=progress)
    dense = compressed = None
    if test is not None:
        test = replayable(test)
        forward = measurement.forward
        dense = evaluate(model, test, forward=forward, progress=progress)
        compressed = evaluate(
            small, test, forward=forward, dense_logits=dense.logits, progress=progress
        )
    if out is not None:
        inputs, _ = next(iter(measurement.calibration))
        save(small, out, overwrite=overwrite, example=inputs)
    return Compression(small, made, dense, compressed)
