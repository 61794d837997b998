"""``zs-svd``: drop the components whose signed first-order losses cancel each other.

Source: Abbasi et al., "Zero Sum SVD", ICML 2026, arXiv 2602.02848. In whitened
coordinates A = W S = Σ_k σ_k u_k v_kᵀ, S Sᵀ = E[z zᵀ], the loss changes by ΔL_k ≈ −σ_k u_kᵀ H v_k
when component k is dropped, H = E[G] S^{-T}, G the gradient of the calibration loss in W. All
components of all layers compete: within a layer the smallest σ goes first, and between layers the
one of smallest |ΔL| among those whose sign is opposite to the sum of ΔL so far, so that the sum
stays near zero; where that sign has run out, the other one is taken.

As in the paper, a layer's components above break-even cost nothing to drop, for it stays dense up
to there; then each is worth m + n weights. S need not be formed: σ_k u_k v_kᵀ S⁻¹ is the k-th outer
product of the layer's factors, and ΔL_k = −⟨E[G], up_k down_k⟩.

Differs: the optional projected gradient step after truncation, repeated stages, and the remapped
storage are left out; a layer keeps at least its smallest option; the loss is the cross entropy of
classification. Where labels are k-means clusters, the model's own predictions take their place.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping

import numpy as np
import torch

from compressor.collapse.loss import LossGradient
from compressor.errors import UsageError
from compressor.layers.candidates import Candidate
from compressor.methods.allocation import options
from compressor.methods.baselines.recipe_method import decided
from compressor.methods.constraints import Constraints, Floats
from compressor.methods.decompose import Decomposition
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS, Decision
from compressor.methods.metrics import Needs, known_loss
from compressor.methods.recipe import Recipe
from compressor.progress import Progress


class ZeroSum:
    """Signed first-order loss of each singular component, and the zero-sum rule."""

    name = "zs-svd"
    source = (
        "ZS-SVD, arXiv 2602.02848, ΔL = −σ uᵀ H v: signed first-order loss of each whitened "
        "component, dropped so that the sum stays near zero"
    )
    recipe = Recipe(metric="second_moment", allocation="zs-svd")

    def needs(self, *, gradients: bool) -> Needs:
        """The calibration loss's gradient; ``gradients`` has no say, for the rule is that."""
        del gradients
        return "loss"

    def decide(
        self,
        measurement: Measurement,
        constraints: Constraints,
        *,
        multiple: int,
        progress: Progress,
    ) -> Decision:
        """Score every component of every layer and drop until the budget holds."""
        layers = measurement.candidates.layers
        changes = {}
        for name in layers:
            found = measurement.decompositions.of_every_rank(name, self.recipe).decomposition
            if not isinstance(found, Decomposition):
                raise UsageError(
                    f"The method zs-svd scores singular components, and layer {name!r} in spatial "
                    "form has none. Take --conv-form channel."
                )
            changes[name] = loss_changes(found, known_loss(measurement.layers[name]))
        ranks = zero_sum(layers, changes, constraints, multiple=multiple)
        return decided(measurement, ranks, self.recipe, progress=progress)


def loss_changes(decomposition: Decomposition, loss: LossGradient) -> Floats:
    """Return ΔL_k = −⟨E[G], up_k down_k⟩ [k]: the first-order loss of dropping each component."""
    up, down = decomposition.up, decomposition.down
    pulled = loss.mean.to(up) @ down.T  # (m, k)
    changes: Floats = -torch.einsum("mk,mk->k", up, pulled).cpu().numpy()
    return changes


def zero_sum(
    layers: Mapping[str, Candidate],
    changes: Mapping[str, Floats],
    constraints: Constraints,
    *,
    multiple: int = 1,
) -> dict[str, int]:
    """Drop components until the layers keep to the constraints.

    Args:
        layers: The candidates by name.
        changes: ΔL of each layer's components, largest singular value first.
        constraints: What the layers may cost together.
        multiple: Ranks are multiples of this.
    """
    choices = {
        name: options(layer, np.zeros(layer.full_rank + 1), constraints, multiple=multiple)
        for name, layer in layers.items()
    }
    ranks = {name: layer.full_rank for name, layer in layers.items()}
    kept = {name: int(choice.ranks[-1]) for name, choice in choices.items()}
    heaps: dict[bool, list[tuple[float, str]]] = {True: [], False: []}

    def offer(name: str) -> None:
        if ranks[name] > choices[name].ranks[0]:
            change = float(changes[name][ranks[name] - 1])
            heapq.heappush(heaps[change >= 0], (abs(change), name))

    for name in layers:
        offer(name)
    cost, limits = constraints.spent(kept), constraints.limits
    total = 0.0
    while (cost > limits).any() and (heaps[True] or heaps[False]):
        rising = total <= 0
        sign = rising if heaps[rising] else not rising
        size, name = heapq.heappop(heaps[sign])
        total += size if sign else -size
        ranks[name] -= 1
        cost -= constraints.cost(name, kept[name])
        if ranks[name] <= layers[name].break_even_rank:
            allowed = choices[name].ranks
            index = int(np.searchsorted(allowed, ranks[name], "right")) - 1
            kept[name] = int(allowed[max(index, 0)])
        cost += constraints.cost(name, kept[name])
        offer(name)
    return kept


METHODS.register(ZeroSum.name)(ZeroSum())
