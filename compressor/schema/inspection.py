"""What `inspect` prints."""

from __future__ import annotations

from compressor.schema.layers import DenseLayer
from compressor.schema.strict import Strict


class InspectedLayer(Strict):
    """One candidate layer as its shapes tell it."""

    name: str
    kind: str
    shape: tuple[int, int]
    parameters: int
    full_rank: int
    break_even_rank: int
    flops: int | None


class Inspection(Strict):
    """What `inspect` prints: layers and costs, without data.

    Args:
        smallest_layers: Smallest reachable share of the candidate layers' weights.
        smallest_params: Smallest reachable share of all parameters.
    """

    model: str
    framework: str
    parameters: int
    layer_parameters: int
    bytes: int | None
    flops: int | None
    input: str | None
    layers: tuple[InspectedLayer, ...]
    left_dense: tuple[DenseLayer, ...]
    smallest_layers: float
    smallest_params: float
