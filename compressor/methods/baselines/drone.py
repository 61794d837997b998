"""``drone``: principal components of the layer's centred outputs (DRONE, AFM).

Sources: Chen et al., "DRONE: Data-aware low-rank compression for large NLP models", NeurIPS 2021;
Yu & Wu, "Compressing transformers: features are low-rank, but weights are not", AAAI
2023 (AFM). U_r are the top eigenvectors of Cov(a), a = W z + b, and
Ŵ = U_r U_rᵀ W, b̂ = b + (W − Ŵ) E[z]: the best rank-r map of inputs to outputs in mean square.

DRONE states the problem without centring, where its optimum is SVD-LLM's; AFM centres and puts the
mean into the bias. This is the centred form, which needs fewer directions where means are large.

Differs: every layer keeps the same share. AFM's adaptive ranks and its feature mimicking
(training), and DRONE's layer-by-layer search of ranks for an error allowance with the following
fine-tuning, are left out. A layer without a bias keeps the mean in its metric (DRONE's own form).
"""

from compressor.methods.baselines.recipe_method import RecipeMethod
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe

DRONE = RecipeMethod(
    name="drone",
    source="DRONE, NeurIPS 2021, centred as in AFM, AAAI 2023, Ŵ = U_r U_rᵀ W: PCA of the outputs, "
    "the same share in every layer",
    recipe=Recipe(metric="covariance", allocation="uniform"),
)

METHODS.register(DRONE.name)(DRONE)
