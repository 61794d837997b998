"""``fwsvd``: Fisher-weighted SVD, the weights' rows scaled by their importance to the loss.

Source: Hsu et al., "Language model compression with weighted low-rank factorization", ICLR 2022,
arXiv 2207.00112. The empirical Fisher of each weight, E[(∂ℓ/∂W_ij)²], is summed over a
row (one output) to Î_i, and Ŵ = Î^{-1/2}(Î^{1/2} W)_r minimises ‖Î^{1/2}(W − Ŵ)‖_F.

As in the paper, the gradients are those of single samples, in the weights (summed over tokens
before they are squared), of the task's loss under the given labels.

Differs: the paper takes the whole training set and fine-tunes afterwards, here the calibration
data and no training; every layer keeps the same share, as in its main tables, but heads and
embeddings follow this package's defaults. Where labels are k-means clusters, the model's own
predictions take their place. Rows without any gradient get a weight of 1e-6 of the mean.
"""

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

FWSVD = RecipeMethod(
    name="fwsvd",
    source="FWSVD, arXiv 2207.00112, min ‖Î^½(W − Ŵ)‖: rows scaled by the root of their empirical "
    "Fisher, the same share in every layer",
    recipe=Recipe(metric="row_fisher", allocation="uniform"),
)

METHODS.register(FWSVD.name)(FWSVD)
