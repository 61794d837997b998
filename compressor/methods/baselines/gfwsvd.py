"""``gfwsvd``: two-sided truncation in the Kronecker-factored Fisher.

Source: Chekalina et al., "Generalized Fisher-weighted SVD", arXiv 2505.17974. With the
Fisher of a layer's weights near A ⊗ B, Ŵ = L_A^{-T}(L_Aᵀ W L_B)_r L_B^{-1}, A = L_A L_Aᵀ on outputs
and B = L_B L_Bᵀ on inputs, minimises the second-order loss of the truncation.

Differs: the paper finds the nearest Kronecker product of the empirical Fisher (given labels) by
Lanczos iterations; here it is one step of that power iteration from the identity, A = E[G Gᵀ] and
B = E[Gᵀ G], on the true Fisher (labels distributed as the model predicts them). Inputs are centred
and the bias corrected where there is one. Every layer keeps the same share, as in the paper.
"""

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

GFWSVD = RecipeMethod(
    name="gfwsvd",
    source="GFWSVD, arXiv 2505.17974: two-sided Kronecker Fisher, the same share in every layer",
    recipe=Recipe(metric="fisher", allocation="uniform"),
)

METHODS.register(GFWSVD.name)(GFWSVD)
