"""``svd-llm`` (also ``whitened``): truncation-aware data whitening.

Source: Wang et al., "SVD-LLM", ICLR 2025, arXiv 2403.07378. With S Sᵀ = E[z zᵀ] (its
Cholesky factor), Ŵ = (W S)_r S⁻¹ minimises the output's error E‖(W − Ŵ) z‖²: each singular value
of W S is exactly the loss of truncating it.

Differs: the paper's second part, the closed-form update of the remaining factor (or LoRA
fine-tuning), is left out: this is its "SVD-LLM (W)". Any root of E[z zᵀ] gives the same Ŵ; an
eigendecomposition is taken, which does not fail where E[z zᵀ] is singular. As in the paper, inputs
are not centred, biases stay as they are, and every layer keeps the same share.
"""

from dataclasses import replace

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

SVD_LLM = RecipeMethod(
    name="svd-llm",
    source="SVD-LLM, arXiv 2403.07378, W ≈ (W S)_r S⁻¹ with S Sᵀ = E[zzᵀ]: truncation-aware "
    "whitening, the same share in every layer",
    recipe=Recipe(metric="second_moment", allocation="uniform"),
)
WHITENED = replace(SVD_LLM, name="whitened")

METHODS.register(SVD_LLM.name)(SVD_LLM)
METHODS.register(WHITENED.name)(WHITENED)
