"""Batches of calibration data: read again in the same order, counted, and probed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sized

import torch
from torch.utils.data import DataLoader, SequentialSampler

from compressor.errors import DataError
from compressor.forward import Batch, Batches, Inputs, batch_length, part, to_device

PROBE_SAMPLES = 3
"""Samples of the probe forward: more than one, so that rows can be told from samples."""

PROBE_TOKENS = 16
"""Tokens of each probe sample where tokens are predicted: all their logits exist at once there."""


def replayable(batches: Iterable[Batch]) -> Batches:
    """Return batches that come in the same order each time.

    An iterator, and a loader that draws its order anew, is read once and kept.
    """
    if isinstance(batches, DataLoader):
        fixed = isinstance(batches.sampler, SequentialSampler)
        return batches if fixed and batches.batch_size is not None else list(batches)
    return list(batches) if iter(batches) is batches else batches


def count(batches: Batches) -> int | None:
    """Return the number of batches, where it is known.

    The length of a split counts its samples, that of a loader or of a list its batches.
    """
    if not isinstance(batches, Sized):
        return None
    size = getattr(batches, "batch_size", None)
    if size is None or isinstance(batches, DataLoader):
        return len(batches)
    return math.ceil(len(batches) / int(size))


def probe_inputs(batches: Batches, device: torch.device) -> Inputs:
    """Return a few samples of the first batch, for probe forwards.

    Raises:
        DataError: If there is no batch.
    """
    for inputs, labels in batches:
        if batch_length(inputs) == 0:
            continue
        if labels is not None and labels.ndim == 2:
            return to_device(part(_short(inputs), 0, PROBE_SAMPLES), device)
        return to_device(part(inputs, 0, PROBE_SAMPLES), device)
    raise DataError("There is no calibration data: no batch was given.")


def _short(inputs: Inputs) -> Inputs:
    """Return the first tokens of a batch's samples [B, T]; a lone sample is repeated."""

    def cut(tensor: torch.Tensor) -> torch.Tensor:
        short = tensor[:, :PROBE_TOKENS] if tensor.ndim > 1 else tensor
        return short if len(short) > 1 else torch.cat([short] * PROBE_SAMPLES)

    if isinstance(inputs, torch.Tensor):
        return cut(inputs)
    if isinstance(inputs, Mapping):
        return {key: cut(value) for key, value in inputs.items()}
    return tuple(cut(value) for value in inputs)
