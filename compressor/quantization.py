"""torchao's quantization of a factorized model, both factors of every layer."""

from __future__ import annotations

import importlib.util
from typing import Any

from torch import nn

from compressor.errors import MissingExtraError
from compressor.layers.lowrank import LowRankLinear, lowrank_layers


def quantize_(model: nn.Module, config: Any) -> nn.Module:
    """Quantize the linear layers of a model in place, both factors of those that are factorized.

    ``torchao.quantization.quantize_`` stops at the first linear layer on its way down. A thin layer
    is one itself, so that its inner factor would stay in full precision.

    Args:
        model: Any model, factorized or not.
        config: A configuration of torchao, for instance ``Int8WeightOnlyConfig()``.

    Returns:
        ``model`` itself.

    Raises:
        MissingExtraError: If torchao is not installed.
    """
    if importlib.util.find_spec("torchao") is None:
        raise MissingExtraError("Quantization", "'compressor[int8]'")
    from torchao.quantization import quantize_ as quantize

    inner = {
        f"{name}.down" for name, layer in lowrank_layers(model).items()
        if isinstance(layer, LowRankLinear)
    }  # fmt: skip
    quantize(model, config)
    quantize(model, config, filter_fn=lambda module, name: name in inner)
    return model
