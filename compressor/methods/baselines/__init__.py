"""Published rules, one a file, for comparison on the same work.

Each truncates and allocates as its paper says, within the same accounting as every other method:
weights of all candidates together, two factors below break-even, else dense. None fine-tunes, and
BatchNorm statistics are corrected or not on held-out data for all alike.
"""

from compressor.methods.baselines import (
    aimet,
    asvd,
    balf,
    drone,
    evbmf,
    fwsvd,
    gfwsvd,
    svd,
    svd_llm,
    zs_svd,
)

__all__ = [
    "aimet",
    "asvd",
    "balf",
    "drone",
    "evbmf",
    "fwsvd",
    "gfwsvd",
    "svd",
    "svd_llm",
    "zs_svd",
]
