"""The Fisher of one layer's weights, in Kronecker form and on the layer's smaller side (pure).

With G_i = Σ_t δ_t z_tᵀ [m, n] the gradient of sample i's loss in the weights W (z centred, so that
the bias correction is part of it), the Fisher is E[vec G vec Gᵀ]. Its nearest Kronecker product is
found by a power iteration (Van Loan & Pitsianis 1993; GFWSVD, arXiv 2505.17974), whose first step
from the identity is

    A = E[G Gᵀ] [m, m]  (outputs),    B = E[Gᵀ G] [n, n]  (inputs),    F ≈ A ⊗ B / E‖G‖².

A change ΔW then costs ½ tr(A ΔW B ΔWᵀ)/E‖G‖² nats of KL. Unlike K-FAC's E[δδᵀ] ⊗ E[zzᵀ], this keeps
what rows of one sample have in common, and rows that the loss does not depend on do not count.

A few hundred gradients say little of thousands of directions. So the same two factors are gathered
of single rows too, each row t taken for a sample of its own:

    A' = E Σ_t ‖z_t‖² δ_t δ_tᵀ,    B' = E Σ_t ‖δ_t‖² z_t z_tᵀ,

which leaves out what rows have in common but has as many terms as there are rows (a Fisher of
independent positions, as K-FAC assumes: Martens & Grosse, arXiv 1503.05671; of convolutions: Grosse
& Martens, arXiv 1602.01407).

Most rows have a small part in these: 1 % of the sums may be left out with three rows of four.

A sample is whatever the caller takes for one: an image or text, or a single token with P = 1
(`compressor.collapse.token_capture`).

Truncation needs A and W B Wᵀ where m ≤ n, and B and Wᵀ A W otherwise: both on the smaller side, so
neither larger matrix is ever formed. Only the spatial form of a convolution asks for it, whose
factors are not two matrices (`compressor.methods.separable`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compressor.collapse.gradient_terms import (
    Pair,
    Terms,
    flat,
    larger_pair,
    sandwich,
    through_positions,
    through_weights,
)
from compressor.collapse.spans import column_energies
from compressor.collapse.symmetric import SymmetricSum
from compressor.collapse.weighty import weighty


@dataclass(frozen=True)
class RowFactors:
    """The two factors with every row taken for a sample, on the smaller side k.

    Args:
        near: A' where m ≤ n, else B', [k, k].
        pulled: The other factor seen through the weights, [k, k].
        energy: E Σ_t ‖δ_t‖² ‖z_t‖², the trace of either factor.
        far: The other factor itself; None where it was not asked for.
    """

    near: Tensor
    pulled: Tensor
    energy: float
    far: Tensor | None = None


@dataclass(frozen=True)
class KroneckerFisher:
    """The two factors on the smaller side k = min(m, n) of a layer.

    Args:
        near: A where m ≤ n, else B, [k, k].
        pulled: The other factor seen through the weights: W B Wᵀ or Wᵀ A W, [k, k].
        energy: E‖G‖², the trace of either factor.
        rows: E Σ_t δ² of each output [m], the diagonal of K-FAC's output factor.
        centre: μ [n] that input rows were centred by; zero where the layer has no bias.
        by_row: The factors of single rows; None where every sample has one row alone.
        far: The larger side's factor itself, B where m ≤ n, else A; None where not asked for.
    """

    near: Tensor
    pulled: Tensor
    energy: float
    rows: Tensor
    centre: Tensor
    by_row: RowFactors | None = None
    far: Tensor | None = None


class _Factors:
    """Sums of the two factors of a layer, near [k, k], pulled [k, k] and, where asked for, far."""

    def __init__(self, side: int, large: int | None, home: torch.device) -> None:
        self.near, self.pulled = SymmetricSum.zero(side, home), SymmetricSum.zero(side, home)
        self.far = None if large is None else SymmetricSum.zero(large, home)
        self.energy = 0.0

    @property
    def matrices(self) -> list[Tensor]:
        """The sums themselves."""
        sums = (self.near, self.pulled, self.far)
        return [part.matrix for part in sums if part is not None]

    def means(self, samples: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return near, pulled and far, divided by a number of samples."""
        near, pulled, *far = (part / samples for part in self.matrices)
        return near, pulled, far[0] if far else None


class FisherMoments:
    """Accumulates `KroneckerFisher` over batches of samples, in float64 between batches.

    Args:
        weight: W [m, n] in the activations' precision.
        centre: μ [n] to centre input rows by.
        bias: The layer's bias [m], where it has one.
        home: Device that the sums are kept on.
        whole: Gather the larger side's factor too.
        left_out: Share of Σ_t ‖δ_t‖² ‖z_t‖² of a batch that rows may have together that are left
            out of A' and B'; 0 takes all rows.

    Attributes:
        output_at_centre: W μ + b [m]: less this, a row's output is W times the centred row.
    """

    def __init__(
        self,
        weight: Tensor,
        centre: Tensor,
        *,
        home: torch.device,
        bias: Tensor | None = None,
        whole: bool = False,
        left_out: float = 0.0,
    ) -> None:
        rows, columns = weight.shape
        self._left_out = left_out
        self._sides = min(rows, columns), max(rows, columns) if whole else None
        self._weight, self.centre, self._home = weight, centre, home
        self._tall = rows > columns
        at_centre = weight.detach() @ centre.to(weight)
        self.output_at_centre = at_centre if bias is None else at_centre + bias.detach()
        self._rows = torch.zeros(rows, dtype=torch.float64, device=home)
        self._samples = 0
        self._sums = _Factors(*self._sides, home)
        self._row_sums: _Factors | None = None

    @property
    def takes_outputs(self) -> bool:
        """Whether it is W z of each row that spares a product, and not δ W: m ≤ n."""
        return not self._tall

    def update(
        self,
        inputs: Tensor,
        gradients: Tensor,
        seen: Tensor | None = None,
        *,
        scale: float = 1.0,
    ) -> None:
        """Add a batch.

        Args:
            inputs: Centred input rows [B, P, n]; rows to leave out are zero.
            gradients: Gradients δ/scale [B, P, m] of each sample's own loss at the outputs.
            seen: What the weights make of the larger side's rows, where the caller has it: of the
                input rows W z [B, P, m] where m ≤ n, else of the gradients δ W/scale [B, P, n].
            scale: What the gradients were divided by.

        Raises:
            ValueError: If a gradient is not finite.
        """
        terms = Terms.of(inputs, gradients, seen)
        pulled = None
        if terms.positions > min(self._weight.shape):
            near, far, energy = through_weights(terms, self._weight)
        else:
            pulled = terms.pulled(self._weight)
            near, far, energy = through_positions(terms, self._weight, pulled)
        self._sum(near, far, energy, gradients, scale)
        if self._sums.far is not None:
            self._sums.far.add(*larger_pair(terms, tall=self._tall), scale * scale)
        if inputs.shape[1] > 1:
            self._sum_rows(terms, pulled, scale)

    def update_lookups(
        self, indices: Tensor, gradients: Tensor, looked_up: Tensor, *, scale: float = 1.0
    ) -> None:
        """Add a batch of a layer whose rows are one-hot: they are never written out.

        Args:
            indices: Which entry of each row is 1, [B, P].
            gradients: As in `update`; zero at rows to leave out.
            looked_up: The columns of W that the rows pick, [B, P, m].
            scale: As in `update`.

        Raises:
            ValueError: If a gradient is not finite.
        """
        same = (indices[:, :, None] == indices[:, None, :]).to(gradients)  # Z Zᵀ, (B, P, P)
        between = gradients @ gradients.transpose(1, 2)
        self._sum(
            sandwich(gradients, same),
            sandwich(looked_up, between),
            (same * between).sum(),
            gradients,
            scale,
        )

    def join_(self, sum_: Callable[[Tensor], None]) -> None:
        """Become the sums of all processes together; each of them has to call it.

        Args:
            sum_: Replaces a tensor by its sum over the processes.
        """
        own = self._row_sums
        numbers = self._rows.new_tensor(
            [self._sums.energy, self._samples, own is not None, 0.0 if own is None else own.energy]
        )
        for tensor in (*self._sums.matrices, self._rows, numbers):
            sum_(tensor)
        self._sums.energy, self._samples = float(numbers[0]), int(numbers[1])
        if not int(numbers[2]):
            return
        if own is None:  # this process had no batch, another one had
            own = self._row_sums = _Factors(*self._sides, self._home)
        for tensor in own.matrices:
            sum_(tensor)
        own.energy = float(numbers[3])

    def result(self) -> KroneckerFisher:
        """Return the means over all samples."""
        samples = max(self._samples, 1)
        near, pulled, far = self._sums.means(samples)
        by_row, own = None, self._row_sums
        if own is not None:
            row_near, row_pulled, row_far = own.means(samples)
            by_row = RowFactors(row_near, row_pulled, own.energy / samples, row_far)
        return KroneckerFisher(
            near=near,
            pulled=pulled,
            energy=self._sums.energy / samples,
            rows=self._rows / samples,
            centre=self.centre.to(self._home).double(),
            by_row=by_row,
            far=far,
        )

    def _sum_rows(self, terms: Terms, pulled: Tensor | None, scale: float) -> None:
        """Add every row of a batch as a sample of its own.

        Args:
            terms: The batch.
            pulled: Its rows seen through the weights, where they are known.
            scale: What the gradients were divided by.
        """
        own = self._row_sums
        if own is None:
            own = self._row_sums = _Factors(*self._sides, self._home)
        square = scale * scale
        sizes = torch.linalg.vector_norm(terms.inputs, dim=2).flatten(), terms.slopes.flatten()
        energies = (sizes[0] * sizes[1]).square()
        rows = weighty(energies, self._left_out) if self._left_out else None
        inputs, gradients = flat(terms.inputs, rows), flat(terms.gradients, rows)
        if pulled is None:
            pulled = terms.pulled(self._weight, rows)
        elif rows is not None:
            pulled = pulled.index_select(0, rows)
        if rows is not None:
            energies = energies.index_select(0, rows)
            sizes = sizes[0].index_select(0, rows), sizes[1].index_select(0, rows)
        of_inputs, of_gradients = (size[:, None] for size in sizes)
        if self._tall:
            near, seen = inputs * of_gradients, pulled * of_inputs
        else:
            near, seen = gradients * of_inputs, pulled * of_gradients
        if own.far is not None:
            far = gradients * of_inputs if self._tall else inputs * of_gradients
            own.far.add(far, far, square)
        own.near.add(near, near, square)
        own.pulled.add(seen, seen, square)
        own.energy += float(energies.sum()) * square

    def _sum(
        self, near: Pair, pulled: Pair, energy: Tensor, gradients: Tensor, scale: float
    ) -> None:
        """Add one batch's products, and its gradients [B, P, m]."""
        if not torch.isfinite(energy):
            raise ValueError("the loss's gradient at its output holds NaN or Inf")
        square = scale * scale
        self._sums.near.add(*near, square)
        self._sums.pulled.add(*pulled, square)
        self._sums.energy += float(energy) * square
        rows = column_energies(gradients.flatten(0, 1)).to(self._home).double()
        self._rows.add_(rows, alpha=square)
        self._samples += len(gradients)
