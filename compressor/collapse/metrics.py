"""Neural collapse from class moments: NC1 and its kin, and what they bound (pure)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.collapse.moments import ClassMoments
from compressor.collapse.spectra import eigh

SMALLEST_EIGENVALUE = 1e-6
"""Share of the largest between-class eigenvalue below which a direction counts as absent."""


ROUNDING = 1e-12
"""Spread that, relative to the rows' size, is float64 rounding: squared, it counts as none."""

PAIR_ROWS = 256
"""Classes whose distances to all others are held at once."""

PAIRS_AT_ONCE = 1 << 16
"""Pairs of close classes whose differences are held at once."""


@dataclass(frozen=True)
class Collapse:
    """How far one layer's rows have collapsed onto their class means.

    Args:
        nc1_quotient: tr Σ_W / tr Σ_B; inf where the class means coincide, None where every row is
            the same or fewer than two classes were seen.
        nc1: tr(Σ_W Σ_B⁺)/C with C the classes seen; None where the class means coincide, fewer than
            two classes were seen, or the scatter was not kept.
        nc1_kept: Between-class directions that ``nc1`` rests on, at most C − 1.
        cdnv: Class-distance normalized variance, the mean over pairs of classes; inf where two
            class means coincide and either class varies; None for fewer than two classes, or where
            a pair neither varies nor differs.
        tcv: tr Σ_W, the total cluster variation; 0 where nothing was seen.
        tcv_relative: tr Σ_W / tr Σ_T; None where every row is the same.
        classes: Classes seen.
    """

    nc1_quotient: float | None
    nc1: float | None
    nc1_kept: int
    cdnv: float | None
    tcv: float
    tcv_relative: float | None
    classes: int


def collapse(moments: ClassMoments, within_covariance: Tensor | None = None) -> Collapse:
    """Return every collapse metric of one layer's rows.

    Args:
        moments: Class moments [C, D] of the rows.
        within_covariance: Σ_W [D, D] where the moments did not keep it, for instance W Σ_W Wᵀ of
            a layer's output.
    """
    if within_covariance is None and moments.within is not None:
        within_covariance = moments.within_covariance
    value, kept = (None, 0) if within_covariance is None else nc1(moments, within_covariance)
    total = moments.within_trace + moments.between_trace
    return Collapse(
        nc1_quotient=nc1_quotient(moments),
        nc1=value,
        nc1_kept=kept,
        cdnv=cdnv(moments),
        tcv=moments.within_trace,
        tcv_relative=moments.within_trace / total if total > _rounding(moments) else None,
        classes=int((moments.counts > 0).sum()),
    )


def nc1_quotient(moments: ClassMoments) -> float | None:
    """Return tr Σ_W / tr Σ_B (Zhu et al., arXiv 2105.02375, in trace form).

    inf where the class means coincide but rows vary; None where every row is the same or fewer
    than two classes were seen, for there is nothing to compare.
    """
    if int((moments.counts > 0).sum()) < 2:
        return None
    within, between, nothing = moments.within_trace, moments.between_trace, _rounding(moments)
    if between > nothing:
        return within / between
    return math.inf if within > nothing else None


def nc1(moments: ClassMoments, within_covariance: Tensor) -> tuple[float | None, int]:
    """Return tr(Σ_W Σ_B⁺)/C and how many between-class directions it rests on.

    Papyan, Han & Donoho 2020 (PNAS 117), eq. for NC1. The pseudo-inverse is never formed: with
    Σ_B = MᵀM, M [C, D] the weighted centred means, the C×C Gram matrix M Mᵀ has the same non-zero
    eigenvalues λ_k, and u_k = Mᵀ v_k/√λ_k are Σ_B's eigenvectors, so that the trace is
    Σ u_kᵀ Σ_W u_k / λ_k over the λ_k above `SMALLEST_EIGENVALUE` of the largest.

    With more classes than features, the u_k are found from Σ_B itself.

    Args:
        moments: Class moments [C, D].
        within_covariance: Σ_W [D, D].
    """
    seen = moments.counts > 0
    classes = int(seen.sum())
    if classes < 2:
        return None, 0
    factor = moments.between_factor[seen]  # (C, D)
    many = factor.shape[0] > factor.shape[1]  # more classes than features: Σ_B is the smaller
    gram = factor.T @ factor if many else factor @ factor.T
    values, vectors = eigh(gram)
    largest = float(values[-1])
    if largest <= _rounding(moments):
        return None, 0
    keep = values > SMALLEST_EIGENVALUE * largest
    values, vectors = values[keep], vectors[:, keep]
    directions = vectors if many else factor.T @ vectors / values.sqrt()  # (D, kept)
    spread = ((within_covariance @ directions) * directions).sum(0)
    return float((spread / values).sum()) / classes, int(keep.sum())


def cdnv(moments: ClassMoments) -> float | None:
    """Return the mean of (v_i + v_j)/(2‖μ_i − μ_j‖²) over pairs of classes.

    v_c = E‖z − μ_c‖² within class c (Galanti, György & Hutter, arXiv 2112.15121, def. 1). inf where
    two class means coincide and either class varies; None for fewer than two classes, or where a
    pair neither varies nor differs.
    """
    seen = moments.counts > 0
    classes = int(seen.sum())
    if classes < 2:
        return None
    nothing = _rounding(moments)
    means = moments.means[seen] - moments.means[seen].mean(0)
    variances = moments.traces[seen] / moments.counts[seen]
    variances = variances.where(variances > nothing, 0.0)
    total = torch.zeros((), dtype=torch.float64, device=means.device)
    for start in range(0, classes - 1, PAIR_ROWS):
        first, second = _pairs(start, min(start + PAIR_ROWS, classes), classes, means.device)
        distances = _square_distances(means, first, second, start)
        distances = distances.where(distances > nothing, 0.0)
        total += ((variances[first] + variances[second]) / 2 / distances).sum()
    mean = float(total) / (classes * (classes - 1) / 2)
    return None if math.isnan(mean) else mean


def nearest_mean_mismatch(pooled: Tensor, labels: Tensor, predictions: Tensor) -> float:
    """Return the share of samples whose nearest class mean disagrees with the classifier (NC4).

    Args:
        pooled: One embedding per sample [N, D].
        labels: Class of each sample [N]; the class means are taken over these samples.
        predictions: Class that the model predicts for each sample [N].

    Raises:
        ValueError: If there is no sample, or an embedding holds NaN or Inf.
    """
    if not len(pooled):
        raise ValueError("there is no sample whose nearest class mean could be found")
    pooled = pooled.double() - pooled.double().mean(0)  # a common offset would cost digits below
    moments = ClassMoments(
        int(labels.max()) + 1, pooled.shape[1], scatter=False, device=pooled.device
    )
    moments.update(pooled, labels)
    seen = torch.nonzero(moments.counts > 0).flatten()
    nearest = seen[torch.cdist(pooled, moments.means[seen]).argmin(1)]
    return float((nearest != predictions).double().mean())


def energy_bound(within: Tensor, between: Tensor, rank: int) -> float | None:
    """Return the largest share of output energy that a truncation to ``rank`` can lose.

    For G_T = G_W + G_B, both positive semi-definite, the best rank i + j approximation loses at
    most tail_i(G_W) + tail_j(G_B): the best approximations of both, of rank i and j, add up to one
    of rank i + j, and tails are subadditive so (Ky Fan 1951, Proc. Natl. Acad. Sci. 37, 760). As
    rank G_B is at most C − 1, the split i = 0 bounds rank C − 1 by q/(1 + q), q the output's
    tr G_W / tr G_B, and i = r − C + 1 bounds what is beyond by a tail of G_W. The least over all
    splits of the rank is returned, as a share of tr G_T; None where there is no energy.

    Args:
        within: Eigenvalues of G_W = W Σ_W Wᵀ, in any order; all m, or, where W has fewer columns n
            than rows, the n largest: then it is known that rank n loses nothing.
        between: Eigenvalues of G_B = W Σ_B Wᵀ, in any order.
        rank: Rank r kept.
    """
    total = float(within.sum() + between.sum())
    if total <= 0:
        return None
    if rank >= len(within):
        return 0.0  # G_T has no more eigenvalues than that, however its parts share them
    tails_within, tails_between = _tails(within), _tails(between)
    splits = torch.arange(rank + 1, device=within.device)
    bound = tails_within[splits] + tails_between[(rank - splits).clamp_max(len(between))]
    return min(float(bound.min()) / total, 1.0)


def _tails(values: Tensor) -> Tensor:
    """Return what is left after the i largest values, for i = 0…k, [k + 1]."""
    ordered = values.clamp_min(0).sort().values
    return torch.cat([ordered.new_zeros(1), ordered.cumsum(0)]).flip(0)


def _rounding(moments: ClassMoments) -> float:
    """Return the squared spread of rows that may be float64 rounding of their size alone."""
    return ROUNDING**2 * float(moments.shares @ moments.means.square().sum(1))


def _pairs(start: int, stop: int, classes: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the pairs (i, j) of classes with start ≤ i < stop and i < j, as two vectors."""
    first, second = torch.triu_indices(
        stop - start, classes - start, offset=1, device=device
    ).unbind()
    return first + start, second + start


def _square_distances(means: Tensor, first: Tensor, second: Tensor, start: int) -> Tensor:
    """Return ‖μ_i − μ_j‖² for pairs with i in the block at ``start``.

    By one matrix product; pairs so close that it loses digits are subtracted one by one.
    """
    norms = means.square().sum(1)
    block = means[start : start + PAIR_ROWS] @ means.T
    size = norms[first] + norms[second]
    distances = size - 2 * block[first - start, second]
    close = torch.nonzero(distances < 1e-4 * size).flatten()
    for begin in range(0, len(close), PAIRS_AT_ONCE):
        part = close[begin : begin + PAIRS_AT_ONCE]
        differences = means[first[part]] - means[second[part]]
        distances[part] = differences.square().sum(1)
    return distances
