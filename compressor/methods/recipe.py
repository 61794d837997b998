"""What a method decides besides the ranks: metrics, allocation and corrections, as plain data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """One way of truncating every layer and of sharing the budget between them.

    Args:
        metric: Registered metric that layers are truncated in.
        alpha: Weight of the within-class covariance in class-aware metrics; ``"nc1"`` takes
            q/(1 + q) of the layer's own collapse q.
        layer_weight: Registered weight s_l of a layer's loss when the budget is shared.
        beta: Strength of NC1 guidance, the exponent of q in the layer weight.
        allocation: Registered allocator, or the name of the method whose own rule it is.
        refit: Ridge of the sequential refit (`compressor.methods.refit`); None leaves it out.
        norm_correction: Correct BatchNorm statistics relative to the dense model; None lets
            held-out data decide.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str = "covariance"
    alpha: Annotated[float, Field(ge=0)] | Literal["nc1"] = 1.0
    layer_weight: str = "one"
    beta: Annotated[float, Field(ge=0)] = 0.0
    allocation: str = "knapsack"
    refit: Annotated[float, Field(gt=0)] | None = None
    norm_correction: bool | None = None

    @property
    def guided(self) -> bool:
        """Whether NC1 has a part in it."""
        return self.beta > 0 or self.alpha != 1.0
