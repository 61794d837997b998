"""A model as a function of named tensors to one tensor, the form that tracing formats take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compressor.errors import ModelError
from compressor.forward import Inputs

TEXT_INPUTS = ("input_ids", "attention_mask")
TENSOR_INPUT = "inputs"


class TextLogits(nn.Module):
    """A model of token ids, called by name, that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Map token ids and mask [B, T] to logits [B, C] (or [B, T, vocabulary])."""
        return only_logits(self.model(input_ids=input_ids, attention_mask=attention_mask))


class TensorLogits(nn.Module):
    """A model of one tensor that returns its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Map inputs [B, ...] to logits [B, C]."""
        return only_logits(self.model(inputs))


def as_function(model: nn.Module, inputs: Mapping[str, Tensor]) -> nn.Module:
    """Return ``model`` as a module that is called on the named inputs."""
    function = TextLogits if tuple(inputs) == TEXT_INPUTS else TensorLogits
    return function(model).train(model.training)


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs by the names that `as_function` takes.

    Raises:
        ModelError: If they are of another form.
    """
    if isinstance(inputs, Tensor):
        return {TENSOR_INPUT: inputs}
    if isinstance(inputs, Mapping) and set(inputs) == set(TEXT_INPUTS):
        return {name: inputs[name] for name in TEXT_INPUTS}
    found = ", ".join(inputs) if isinstance(inputs, Mapping) else f"{len(inputs)} tensors"
    raise ModelError(
        f"Export knows models of one tensor, or of {' and '.join(TEXT_INPUTS)}; this one is called "
        f"on {found}. Save it with compressor.save, or export a part of it."
    )


def only_logits(output: Any) -> Tensor:
    """Return the logits in a model's output.

    Raises:
        ModelError: If there are none.
    """
    logits = getattr(output, "logits", output)
    if isinstance(logits, (tuple, list)):
        logits = logits[0]
    if not isinstance(logits, Tensor):
        raise ModelError(f"The model returns {type(output).__name__}, which holds no logits.")
    return logits
