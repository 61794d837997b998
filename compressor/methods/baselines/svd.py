"""``svd`` and ``svd-energy``: truncated SVD of the weights, with no data at all.

Source: Eckart & Young, Psychometrika 1 (1936); as a compressor of networks Denton et al., NeurIPS
2014. Ŵ = U_r diag(σ_1…σ_r) V_rᵀ minimises ‖W − Ŵ‖_F.

``svd`` keeps the same share of every layer's weights. ``svd-energy`` keeps the same share of every
layer's energy, Σ_{k≤r} σ_k² / Σ_k σ_k² ≥ 1 − ε, with the one ε at which the budget is met.

Differs: convolutions are truncated as the matrix [out, in·kh·kw] (Denton et al. try several
foldings); papers state ε and report the size that results, here the budget is given and ε follows.
"""

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

SVD = RecipeMethod(
    name="svd",
    source="Eckart & Young 1936: truncated SVD of the weights, the same share in every layer",
    recipe=Recipe(metric="identity", allocation="uniform"),
)

SVD_ENERGY = RecipeMethod(
    name="svd-energy",
    source="Eckart & Young 1936: truncated SVD of the weights, the same share of energy "
    "Σσ² lost in every layer",
    recipe=Recipe(metric="identity", layer_weight="relative", allocation="energy"),
)

METHODS.register(SVD.name)(SVD)
METHODS.register(SVD_ENERGY.name)(SVD_ENERGY)
