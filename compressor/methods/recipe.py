"""What a method decides besides the ranks: metrics, allocation and corrections, as plain data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """One way of truncating every layer and of sharing the budget between them.

    Args:
        input_metric: Registered metric Σ on a layer's inputs.
        alpha: Weight of the within-class covariance in the class-aware metric; ``"nc1"`` takes
            q/(1 + q) of the layer's own collapse q.
        rows: Whether input rows count alike or by the squared gradient at their output.
        output_metric: Registered metric F on a layer's outputs.
        layer_weight: Registered weight s_l of a layer's loss when the budget is shared.
        beta: Strength of NC1 guidance, the exponent of q in the layer weight.
        allocation: Registered allocator.
        refit: Refit factors in sequence on the compressed prefix's inputs.
        norm_correction: Correct BatchNorm statistics relative to the dense model; None lets
            held-out data decide.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    input_metric: str = "covariance"
    alpha: Annotated[float, Field(ge=0)] | Literal["nc1"] = 1.0
    rows: Literal["uniform", "gradient"] = "uniform"
    output_metric: str = "identity"
    layer_weight: str = "one"
    beta: Annotated[float, Field(ge=0)] = 0.0
    allocation: str = "knapsack"
    refit: bool = False
    norm_correction: bool | None = None

    @property
    def gradients(self) -> bool:
        """Whether it needs gradients of the calibration loss."""
        return self.rows == "gradient" or self.output_metric in {"fisher", "row_fisher"}

    @property
    def guided(self) -> bool:
        """Whether NC1 has a part in it."""
        return self.beta > 0 or self.input_metric == "class_aware"
