"""Class-conditional moments in one streaming pass: counts, means, scatter; exact and mergeable."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compressor.collapse.spans import spans, squared_lengths
from compressor.collapse.symmetric import BLOCK, SymmetricSum

ONE_HOT_CLASSES = 256
"""Up to this many classes in a batch, sums by class are one matrix product."""


class ClassMoments:
    """Accumulates rows z [D] of C classes into counts, means and within-class scatter.

    Rows are centred by their own batch's class means before they are multiplied, and batches are
    merged by the formula of Chan, Golub & LeVeque (1983), so that a common offset of the rows costs
    no digits. State is float64. Memory is D×D + C×D, never C×D×D. With weights, every count below
    is a sum of weights.

    Args:
        classes: Number of classes C.
        features: Width D of the rows.
        scatter: Keep the scatter matrix; without it only its trace is kept, by class.
        device: Where the state lies.

    Attributes:
        counts: Rows (or weight) seen of each class, [C].
        means: Class means [C, D]; zero for classes not seen.
        traces: Σ_i ‖z_i − μ_c‖² of each class, [C].
    """

    def __init__(
        self,
        classes: int,
        features: int,
        *,
        scatter: bool = True,
        device: torch.device | None = None,
    ) -> None:
        zeros = {"dtype": torch.float64, "device": device}
        self.counts: Tensor = torch.zeros(classes, **zeros)  # type: ignore[arg-type]
        self.means: Tensor = torch.zeros(classes, features, **zeros)  # type: ignore[arg-type]
        self.traces: Tensor = torch.zeros(classes, **zeros)  # type: ignore[arg-type]
        self._scatter = SymmetricSum.zero(features, device) if scatter else None

    @property
    def within(self) -> Tensor | None:
        """Scatter summed over classes, Σ_c Σ_{i∈c} (z_i−μ_c)(z_i−μ_c)ᵀ [D, D], or None."""
        return None if self._scatter is None else self._scatter.matrix

    def update(self, rows: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Add one batch.

        Args:
            rows: Rows [N, D], float32 or float64 (half precision is computed in float32).
            labels: Class of each row [N].
            weights: Weight of each row [N], not negative; None counts each row once.

        Raises:
            ValueError: If a row holds NaN or Inf, with the number of such rows; if a label lies
                outside [0, C); or if a weight is negative or not finite. Nothing is added then.
        """
        rows = rows if rows.dtype == torch.float64 else rows.float()
        if not len(rows):
            return
        present, position = torch.unique(labels, return_inverse=True)
        self._require_known(present)
        if weights is not None and not bool((torch.isfinite(weights) & (weights >= 0)).all()):
            raise ValueError("the weights of the rows must be finite and not negative")
        mass = None if weights is None else weights.double()
        counts = torch.bincount(position, weights=mass, minlength=len(present)).double()
        # A first mean in the rows' own precision is near enough to centre by; what it missed is
        # the mean of the centred rows, small numbers that lose nothing in that precision.
        about = _class_means(rows, position, mass, counts).to(rows.dtype)
        if not bool(torch.isfinite(about).all()):
            bad = int((~torch.isfinite(rows).all(1)).sum())
            raise ValueError(f"{bad} of {len(rows)} rows hold NaN or Inf")
        centred = None if self._scatter is None else torch.empty_like(rows)
        left = torch.zeros_like(about, dtype=torch.float64)
        norms = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        for part in spans(rows):
            near = about.index_select(0, position[part])
            torch.sub(rows[part], near, out=near)
            norms[part] = squared_lengths(near).double()
            left += _class_sums(near, position[part], mass if mass is None else mass[part], counts)
            if centred is not None:
                centred[part] = near
        left /= counts.where(counts > 0, 1.0)[:, None]
        squares = torch.zeros_like(counts)
        squares.index_add_(0, position, norms if mass is None else norms * mass)
        squares -= counts * left.square().sum(1)
        between = self._add(present, counts, about.double() + left, squares.clamp_min(0))
        if self._scatter is not None and centred is not None:
            if mass is not None:
                centred *= mass.sqrt().to(rows.dtype)[:, None]
            self._scatter.add_gram(centred)
            # D×D matrices are large: both corrections of low rank are added in one product.
            first, second = (
                torch.cat([between, left * -counts[:, None]]),
                torch.cat([between, left]),
            )
            self._scatter.upper.addmm_(first.T, second)

    def merge(self, other: ClassMoments) -> ClassMoments:
        """Return the moments of both sets of rows together; neither is changed.

        Raises:
            ValueError: If classes or features differ, or only one of both keeps its scatter.
        """
        if self.means.shape != other.means.shape:
            raise ValueError(
                "moments of {} classes × {} features cannot be merged with {} × {}".format(
                    *self.means.shape, *other.means.shape
                )
            )
        if (self._scatter is None) != (other._scatter is None):
            raise ValueError(
                "moments that keep their scatter cannot be merged with some that do not"
            )
        merged = self.from_state(self.state())
        present = torch.nonzero(other.counts > 0).flatten()
        between = merged._add(
            present, other.counts[present], other.means[present], other.traces[present]
        )
        if merged._scatter is not None and other.within is not None:
            merged._scatter.upper.add_(other.within).addmm_(between.T, between)
        return merged

    def join_(self, sum_: Callable[[Tensor], None]) -> None:
        """Become the moments of all processes' rows together; each of them has to call it.

        By the parallel axis theorem: a process's scatter about its own class means, plus that of
        these means about the common ones, adds up over processes (Chan et al., eq. 2.1).

        Args:
            sum_: Replaces a tensor by its sum over the processes.
        """
        counts, sums = self.counts.clone(), self.counts[:, None] * self.means
        sum_(counts)
        sum_(sums)
        means = sums / counts.where(counts > 0, 1.0)[:, None]
        away = self.counts.sqrt()[:, None] * (self.means - means)  # (C, D), zero where none is seen
        self.traces += away.square().sum(1)
        sum_(self.traces)
        if self._scatter is not None:
            sum_(self._scatter.matrix.addmm_(away.T, away))
        self.counts, self.means = counts, means

    def first(self, classes: int) -> ClassMoments:
        """Return the moments of the first ``classes`` classes alone.

        Their scatter is None: it is only known summed over all classes.
        """
        state = self.state()
        state.pop("within", None)
        return self.from_state({name: tensor[:classes] for name, tensor in state.items()})

    def _require_known(self, labels: Tensor) -> None:
        for label in (int(labels[0]), int(labels[-1])):  # sorted
            if not 0 <= label < len(self.counts):
                raise ValueError(f"the label {label} lies outside 0…{len(self.counts) - 1}")

    def _add(self, present: Tensor, counts: Tensor, means: Tensor, traces: Tensor) -> Tensor:
        """Merge a batch whose classes are ``present`` [k] into the state (Chan et al., eq. 2.1).

        Returns:
            Rows [k, D] whose Gram matrix is what the scatter gains besides the batch's own.
        """
        before = self.counts[present]
        together = before + counts
        safe = together.where(together > 0, 1.0)
        delta = means - self.means[present]  # (k, D)
        share = before * counts / safe  # n_a n_b / (n_a + n_b), 0 for a class not seen before
        self.traces[present] += traces + share * delta.square().sum(1)
        self.means[present] += delta * (counts / safe)[:, None]
        self.counts[present] = together
        return delta * share.sqrt()[:, None]

    @property
    def total(self) -> float:
        """Number of rows (or sum of weights) N."""
        return float(self.counts.sum())

    @property
    def shares(self) -> Tensor:
        """Share p_c of each class, [C]."""
        return self.counts / max(self.total, 1e-300)

    @property
    def mean(self) -> Tensor:
        """Mean μ of all rows, [D]."""
        return self.shares @ self.means

    @property
    def within_covariance(self) -> Tensor:
        """Σ_W = Σ_c p_c E[(z−μ_c)(z−μ_c)ᵀ | c], [D, D].

        Raises:
            ValueError: If the scatter was not kept.
        """
        within = self.within
        if within is None:
            raise ValueError("the scatter matrix was not kept")
        return within / max(self.total, 1e-300)

    @property
    def between_factor(self) -> Tensor:
        """Rows √p_c (μ_c − μ) [C, D]; Σ_B is its Gram matrix."""
        return self.shares.sqrt()[:, None] * (self.means - self.mean)

    @property
    def between_covariance(self) -> Tensor:
        """Σ_B = Σ_c p_c (μ_c−μ)(μ_c−μ)ᵀ, [D, D]."""
        factor = self.between_factor
        return factor.T @ factor

    @property
    def total_covariance(self) -> Tensor:
        """Σ_T = Σ_W + Σ_B, [D, D]."""
        return self.within_covariance + self.between_covariance

    @property
    def within_trace(self) -> float:
        """Return tr Σ_W, known without the scatter too."""
        return float(self.traces.sum()) / max(self.total, 1e-300)

    @property
    def between_trace(self) -> float:
        """Return tr Σ_B."""
        return float(self.between_factor.square().sum())

    def state(self) -> dict[str, Tensor]:
        """Return copies of the state's tensors, for a cache or for another process.

        Counts alone may be summed over processes: the others refer to each process's own means.
        Gather the states of all, and `merge` them.
        """
        tensors = {"counts": self.counts, "means": self.means, "traces": self.traces}
        within = self.within
        if within is not None:
            tensors["within"] = within
        return {name: tensor.clone() for name, tensor in tensors.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> ClassMoments:
        """Return the moments that `state` was taken from; they hold its tensors from now on."""
        moments = cls(0, 0, scatter=False, device=state["means"].device)
        moments.counts, moments.means = state["counts"], state["means"]
        moments.traces, within = state["traces"], state.get("within")
        moments._scatter = None if within is None else SymmetricSum(within)
        return moments


def _class_means(rows: Tensor, position: Tensor, mass: Tensor | None, counts: Tensor) -> Tensor:
    """Return the weighted means [k, D] in float64 of rows grouped by ``position`` [N]."""
    sums = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        weights = None if mass is None else mass[part]
        sums += _class_sums(rows[part], position[part], weights, counts)
    return sums / counts.where(counts > 0, 1.0)[:, None]


def _class_sums(rows: Tensor, position: Tensor, mass: Tensor | None, counts: Tensor) -> Tensor:
    """Return the weighted sums [k, D] of rows grouped by ``position`` [N], as precise as they."""
    if rows.device.type != "cpu":
        return _class_products(rows, position, mass, counts)
    weighted = rows if mass is None else rows * mass.to(rows.dtype)[:, None]
    return rows.new_zeros(len(counts), rows.shape[1]).index_add_(0, position, weighted)


def _class_products(rows: Tensor, position: Tensor, mass: Tensor | None, counts: Tensor) -> Tensor:
    """Return the same where rows are not added up in the same order each time: by products."""
    weights = rows.new_ones(len(rows)) if mass is None else mass.to(rows.dtype)
    if len(counts) <= ONE_HOT_CLASSES:
        one_hot = rows.new_zeros(len(counts), len(rows))
        one_hot[position, torch.arange(len(rows), device=rows.device)] = weights
        return one_hot @ rows
    sums = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64, device=rows.device)
    return sums.index_add_(0, position, (rows * weights[:, None]).double())
