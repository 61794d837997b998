"""Which rows of a layer are real tokens that reached it (pure)."""

from __future__ import annotations

import torch
from torch import Tensor


def real_rows(rows: Tensor, reached: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Return which of the rows [B, P, n] are real tokens that reached the layer, [B, P].

    Args:
        rows: The layer's rows, those of padding among them.
        reached: Positions in [B·P] that reached it; None: all.
        mask: Which tokens are real, [B, T]; of no use to rows of another length.

    Returns:
        None where all are.
    """
    keep = None
    if mask is not None and mask.shape == rows.shape[:2]:
        keep = mask.to(rows.device) != 0
    if reached is None:
        return keep
    there = torch.zeros(rows.shape[:2], dtype=torch.bool, device=rows.device)
    there.view(-1)[reached] = True
    return there if keep is None else there & keep


def kept(rows: Tensor, index: Tensor | None) -> Tensor:
    """Return the kept rows [N, n] of [B, P, n]; without an index, all."""
    flat = rows.reshape(-1, rows.shape[-1])
    return flat if index is None else flat.index_select(0, index)


def centred(rows: Tensor, centre: Tensor, keep: Tensor | None) -> Tensor:
    """Return rows [B, P, k] less a centre [k], and zero where they are not to be kept."""
    found = rows - centre.to(rows)
    if keep is not None:
        found *= keep[..., None]
    return found
