"""Weighted sums over pairs of rows, of which a linear regression is solved (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from compressor.collapse.symmetric import SymmetricSum
from compressor.distributed import Group


@dataclass
class PairSums:
    """Sums over rows x [n] and y [m] with weights w, about origins o and p near their means.

    In float64; a common offset of the rows costs no digits.

    Args:
        weight: Σ w, in the unit.
        origins: o [n] and p [m].
        sums: Σ w (x − o) and Σ w (y − p).
        gram: Σ w (x − o)(x − o)ᵀ, [n, n].
        cross: Σ w (y − p)(x − o)ᵀ, [m, n].
        unit: What weights are counted in, so that they are near 1; 0 before the first row.
    """

    weight: float
    origins: tuple[Tensor, Tensor]
    sums: tuple[Tensor, Tensor]
    gram: SymmetricSum
    cross: Tensor
    unit: float = 0.0

    @classmethod
    def empty(cls, inputs: int, outputs: int, home: torch.device) -> PairSums:
        """Return sums over no rows, kept on ``home``."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=home)

        origins, sums = ((zeros(inputs), zeros(outputs)) for _ in range(2))
        return cls(0.0, origins, sums, SymmetricSum.zero(inputs, home), zeros(outputs, inputs))

    def state(self) -> dict[str, Tensor]:
        """Return the sums as named tensors."""
        numbers = self.cross.new_tensor([self.weight, self.unit])
        (o, p), (s, t) = self.origins, self.sums
        return {
            "numbers": numbers,
            "o": o,
            "p": p,
            "s": s,
            "t": t,
            "gram": self.gram.matrix,
            "cross": self.cross,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> PairSums:
        """Return the sums that `state` was taken from; they hold its tensors from now on."""
        weight, unit = state["numbers"].tolist()
        origins, sums = (state["o"], state["p"]), (state["s"], state["t"])
        return cls(weight, origins, sums, SymmetricSum(state["gram"]), state["cross"], unit)

    def add(self, rows: Tensor, wanted: Tensor, weights: Tensor, *, centred: bool) -> None:
        """Add rows x [N, n] and y [N, m] with their weights [N], of which some are positive.

        Args:
            rows: In any precision, in which they are multiplied.
            wanted: Likewise.
            weights: Not negative.
            centred: Whether origins are the first rows' means, and not zero.
        """
        home = self.cross.device
        first, self.unit = not self.unit, self.unit or float(weights.sum())
        weights = weights / self.unit
        total = float(weights.sum())
        weights = weights.to(rows)
        if first and centred:
            share = weights / total
            self.origins = (_double(share @ rows, home), _double(share @ wanted, home))
        rows, wanted = rows - self.origins[0].to(rows), wanted - self.origins[1].to(wanted)
        weighted = rows * weights[:, None]
        self.weight += total
        self.sums = (
            self.sums[0] + _double(weighted.sum(0), home),
            self.sums[1] + _double(weights @ wanted, home),
        )
        self.gram.add(weighted, rows)
        self.cross += _double(wanted.T @ weighted, home)

    def joined(self, group: Group) -> PairSums:
        """Return the sums over all processes' rows; each of them has to call it.

        Each moves its own to the common origins, the weighted mean of all. With d = o − o',
        s = Σ w (x − o) and W = Σ w, by the parallel axis theorem

            Σ w (x − o')(x − o')ᵀ = Σ w (x − o)(x − o)ᵀ + s dᵀ + d sᵀ + W d dᵀ.
        """
        if group.size == 1:
            return self
        told = self.cross.new_tensor([self.unit, self.unit * self.weight])
        origins = tuple(told[1] * origin for origin in self.origins)
        for tensor in (told, *origins):
            group.sum_(tensor)
        unit, absolute = float(told[0]), float(told[1])
        if not absolute > 0:
            return self
        scale = self.unit / unit
        (o, p), weight = (origin / absolute for origin in origins), self.weight * scale
        d, e = self.origins[0] - o, self.origins[1] - p
        s, t = self.sums[0] * scale, self.sums[1] * scale
        met = torch.outer(s, d)
        joined = replace(
            self,
            origins=(o, p),
            sums=(s + weight * d, t + weight * e),
            gram=SymmetricSum(self.gram.matrix * scale + met + met.T + weight * torch.outer(d, d)),
            cross=self.cross * scale
            + torch.outer(t, d)
            + torch.outer(e, s)
            + weight * torch.outer(e, d),
            unit=unit,
        )
        for tensor in (*joined.sums, joined.gram.upper, joined.cross):
            group.sum_(tensor)
        joined.weight = absolute / unit
        return joined


def _double(tensor: Tensor, home: torch.device) -> Tensor:
    return tensor.to(home).double()
