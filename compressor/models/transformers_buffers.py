"""Buffers that no checkpoint holds (rotary frequencies, masks), for a model on the meta device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compressor.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fill_buffers(model: PreTrainedModel, known: Iterable[str]) -> None:
    """Give each buffer that is not on disk its values, in place, as transformers' own loading does.

    Weights stay on the meta device, where initializing them costs nothing. A module's initializer
    is run on two different fillings, to see whether it sets all of a buffer.

    Args:
        model: The model.
        known: Names of the buffers that are on disk.

    Raises:
        ModelError: If an initializer leaves a buffer as it was.
    """
    on_disk = set(known)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        wanted = [
            child
            for child, buffer in module._buffers.items()
            if buffer is not None and buffer.is_meta and f"{prefix}{child}" not in on_disk
        ]
        if not wanted:
            continue
        zeros, ones = (_initialized(model, module, wanted, fill) for fill in (0, 1))
        for child in wanted:
            if not torch.equal(zeros[child], ones[child]):
                raise ModelError(
                    f"{type(model).__name__} makes its buffer {prefix}{child} in a way that cannot "
                    "be repeated without its weights. Leave out --stream."
                )


def _initialized(
    model: PreTrainedModel, module: nn.Module, names: list[str], fill: int
) -> dict[str, Tensor]:
    """Return a module's buffers after they were filled with a value and then initialized."""
    initializer: Any = model
    for name in names:
        meta: Any = module._buffers[name]
        module._buffers[name] = torch.full(meta.shape, fill, dtype=meta.dtype)
    with torch.no_grad():
        initializer._init_weights(module)
    return {name: buffer for name in names if (buffer := module._buffers[name]) is not None}
