"""Which calibration samples a refit is worth running on (pure)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compressor.collapse.row_energy import BatchEnergies
from compressor.collapse.weighty import weighty


def fitted_samples(
    batches: Sequence[BatchEnergies], names: Sequence[str], left_out: float
) -> list[Tensor | None]:
    """Return the samples of each batch that hold all but a share of the regressions' weights.

    A sample's share is the mean over layers of what its rows hold of the layer's weights.

    Args:
        batches: The weights of all batches.
        names: The layers that are fitted.
        left_out: The share that the samples that are left out may have together; 0 takes all.

    Returns:
        Indices [k] in order for each batch, None where all of its samples are taken.
    """
    if not left_out:
        return [None] * len(batches)
    shares = torch.zeros(sum(batch.samples for batch in batches), dtype=torch.float64)
    for name in names:
        held = torch.cat([_by_sample(batch, name) for batch in batches])
        shares += held / held.sum().clamp_min(1e-300)
    taken = weighty(shares, left_out)
    if taken is None or not len(taken):
        return [None] * len(batches)
    found: list[Tensor | None] = []
    start = 0
    for batch in batches:
        end = start + batch.samples
        own = taken[(taken >= start) & (taken < end)] - start
        found.append(None if len(own) == batch.samples else own)
        start = end
    return found


def _by_sample(batch: BatchEnergies, name: str) -> Tensor:
    """Return the weight of each sample's rows, those of all calls together, [B]."""
    calls = [rows.cpu().double().sum(1) for rows in batch.real(name)]
    return torch.stack(calls).sum(0)
