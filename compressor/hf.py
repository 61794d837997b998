"""Low-rank checkpoints in transformers: the quantization config and quantizer it asks for.

Importing this module registers both, after which ``from_pretrained`` rebuilds the factorized layers
of a saved directory by itself. `compressor.autoregister` imports it as soon as transformers is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.quantizers import (  # type: ignore[attr-defined]
    HfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.quantization_config import QuantizationConfigMixin

from compressor.checkpoint.format import FORMAT_VERSION, LowRankConfig, parse_lowrank

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

METHOD = "lowrank"


@register_quantization_config(METHOD)
class LowRankQuantizationConfig(QuantizationConfigMixin):
    """The ``quantization_config`` block of a saved config.json.

    Args:
        block: The keys of `LowRankConfig`.

    Raises:
        CheckpointError: If a newer version wrote it, or it is malformed.
    """

    def __init__(self, **block: Any) -> None:
        self.quant_method = METHOD  # type: ignore[assignment]  # the enum lists its own methods only
        self.lowrank = parse_lowrank(
            {**block, "quant_method": METHOD}, where="config.json, quantization_config"
        )

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def to_dict(self) -> dict[str, Any]:
        """Return the block as it stands in config.json."""
        return self.lowrank.model_copy(update={"format_version": FORMAT_VERSION}).model_dump(
            mode="json"
        )


@register_quantizer(METHOD)
class LowRankQuantizer(HfQuantizer):
    """Swaps low-rank layers into the model before its weights are loaded."""

    requires_calibration = True

    @property
    def lowrank(self) -> LowRankConfig:
        """The factorized layers."""
        assert isinstance(self.quantization_config, LowRankQuantizationConfig)
        return self.quantization_config.lowrank

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        """Replace the dense layers, still on the meta device, by unfilled low-rank ones."""
        from compressor.layers.surgery import install_skeletons

        del kwargs
        install_skeletons(model, self.lowrank.layers, unfused=self.lowrank.unfused)
        return model

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: PreTrainedModel
    ) -> list[Any]:
        """Leave out the merging of experts where each has matrices of its own."""
        from compressor.models.transformers_names import without_expert_merges

        conversions: list[Any] = super().update_weight_conversions(  # type: ignore[no-untyped-call]
            weight_conversions, model
        )
        return without_expert_merges(conversions) if self.lowrank.unfused else conversions

    def _process_model_after_weight_loading(
        self, model: PreTrainedModel, **kwargs: Any
    ) -> PreTrainedModel:
        """Let the model be cast and trained like any other: its weights are plain floats."""
        del kwargs
        model.is_quantized = False  # type: ignore[assignment]  # torch types attributes as tensors
        return model

    def _dequantize(
        self, model: PreTrainedModel, dtype: torch.dtype | None = None
    ) -> PreTrainedModel:
        """Multiply the factors back: ``model.dequantize()`` is an ordinary dense model."""
        from compressor.layers.surgery import densify

        densify(model)
        if dtype is not None:
            nn.Module.to(model, dtype)
        return model

    def is_serializable(self) -> bool:
        """Return True: ``save_pretrained`` writes the same directory again."""
        return True

    @property
    def is_trainable(self) -> bool:
        """True: the factors are parameters like others."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """True: nothing stands between the factors and their gradients."""
        return True

    @property
    def is_compileable(self) -> bool:
        """True: two matrix products."""
        return True
