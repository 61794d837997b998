"""``asvd``: activation-aware SVD, the weights' columns scaled by the size of their inputs.

Source: Yuan et al., "ASVD", arXiv 2312.05821. With S = diag(mean |z_j|)^α the SVD of
W S is truncated and S taken out again: Ŵ = (W S)_r S⁻¹, which minimises ‖(W − Ŵ) S‖_F. α = 0.5, the
value the paper settles on, and the mean of absolute values, its default statistic.

Differs: the paper searches each layer's ratio by the perplexity measured when that layer alone is
truncated (STRS); here every layer keeps the same share, so that the scaling itself is
compared. (`aimet` is such a search.) The paper's means are over all tokens, here padding is left
out; patches take the place of tokens in convolutions.
"""

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

ASVD = RecipeMethod(
    name="asvd",
    source="ASVD, arXiv 2312.05821, W ≈ (W S)_r S⁻¹: columns scaled by (mean |z|)^0.5, "
    "the same share in every layer instead of its sensitivity search",
    recipe=Recipe(metric="magnitude", allocation="uniform"),
)

METHODS.register(ASVD.name)(ASVD)
