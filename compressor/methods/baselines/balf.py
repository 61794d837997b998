"""``balf``: whitened truncation, ranks by a Lagrangian on each layer's normalised energy.

Source: González-Martínez, "BALF: Budgeted activation-aware low-rank factorization", arXiv
2509.25136. With σ_k the singular values of W S, S Sᵀ = E[z zᵀ], the kept energies
Σ_l Σ_{k≤r_l} σ²_{l,k} / Σ_k σ²_{l,k} are maximised under Σ_l min(r_l (m + n), m n) ≤ B: a
multiple-choice knapsack, by bisection of its Lagrangian multiplier.

Differs: what the multiplier leaves of the budget is spent greedily (at most a few ranks), so that
all methods are compared at one size; the budget counts parameters (the paper's also FLOPs);
grouped convolutions are left dense.
"""

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

BALF = RecipeMethod(
    name="balf",
    source="BALF, arXiv 2509.25136: whitened truncation, Lagrangian on the energy "
    "normalised in each layer",
    recipe=Recipe(metric="second_moment", layer_weight="relative", allocation="knapsack"),
)

METHODS.register(BALF.name)(BALF)
