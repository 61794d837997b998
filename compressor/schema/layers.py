"""Layers after compression, and those that were left dense."""

from __future__ import annotations

from compressor.schema.strict import Strict


class Spectrum(Strict):
    """How fast the directions of one layer lose their worth, in the metric it was truncated in.

    Args:
        metric: Registered metric; ``identity`` is that of the weights themselves.
        ranks: At most 64 positions, from 1 to the full rank in steps of equal ratio.
        values: Singular value at each position over the largest; what truncation to rank r loses
            is the sum of the squares beyond r.
    """

    metric: str
    ranks: tuple[int, ...]
    values: tuple[float, ...]


class LayerFigures(Strict):
    """One candidate layer after compression.

    Args:
        name: Module name.
        kind: Registered layer kind, which says what form its factors have.
        shape: Rows (outputs) and columns (inputs) of the layer's matrix.
        rank: Rank kept; equal to ``full_rank`` where the layer stayed dense.
        full_rank: min(shape); in spatial form that of the folded kernels.
        break_even_rank: Largest rank at which two factors are smaller than the dense matrix.
        parameters: Weights kept in this layer.
        nc1_quotient: tr Σ_W / tr Σ_B of the layer's input.
        nc1: tr(Σ_W Σ_B⁺)/C of the layer's input.
        cdnv: Class-distance normalized variance of the layer's input.
        nc1_quotient_output: tr G_W / tr G_B of the layer's output.
        bound: Most of the output's energy that the best truncation to this rank for that energy
            can lose, as a share, from collapse alone.
        energy_lost: Share that this one did lose; one that aims at the predictions, as the default
            does, may lose more.
        spectrum: Singular values in the metric of the truncation, where it was carried out.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    rank: int
    full_rank: int
    break_even_rank: int
    parameters: int
    nc1_quotient: float | None
    nc1: float | None
    cdnv: float | None
    nc1_quotient_output: float | None
    bound: float | None
    energy_lost: float | None
    spectrum: Spectrum | None = None

    @property
    def shown_rank(self) -> str:
        """The rank over the full rank, with the form where it is not a layer's usual one."""
        if self.rank >= self.full_rank:
            return "dense"
        form = " spatial" if self.kind.endswith("-spatial") else ""
        return f"{self.rank}/{self.full_rank}{form}"


ALREADY_FACTORIZED = "already factorized"
"""Why the factorized layers of a compressed checkpoint are no candidates again."""


class DenseLayer(Strict):
    """A layer that is no candidate, and why."""

    name: str
    reason: str
