"""Which of many weighted terms matter: the largest, up to a share of their sum (pure)."""

from __future__ import annotations

from torch import Tensor


def weighty(weights: Tensor, left_out: float) -> Tensor | None:
    """Return the indices, in order, of the fewest weights that hold all but a share of the sum.

    Args:
        weights: Finite and not negative, [N].
        left_out: The share of the sum that all others may have together; with 0 those that are
            zero are left out.

    Returns:
        int64 [k] on the weights' device; None where all of them are taken.
    """
    known = weights.detach().cpu().double()  # MPS has no float64
    ordered, index = known.sort(descending=True, stable=True)
    held = ordered.cumsum(0)
    before = held - ordered
    # Of two weights alike the first is taken: the same ones on every device.
    count = int(((before < (1 - left_out) * held[-1:]) & (ordered > 0)).sum())
    if count == len(known):
        return None
    return index[:count].sort().values.to(weights.device)
