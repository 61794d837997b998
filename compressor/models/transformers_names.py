"""The names that transformers gives a tensor on disk and in memory, which can differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def in_memory_dtypes(
    module: PreTrainedModel, on_disk: Mapping[str, torch.dtype]
) -> dict[str, torch.dtype]:
    """Return the file's type of every floating tensor, by its name in memory.

    Names in memory can differ from the keys on disk. They are translated the way transformers
    loads them; a tensor that was merged from several takes the widest type of the file.
    """
    if not on_disk:
        return {}
    widest = max(on_disk.values(), key=lambda dtype: torch.finfo(dtype).bits)
    renamed = dict(on_disk)
    if len(set(on_disk.values())) > 1:
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        renamings = [
            entry
            for entry in getattr(module, "_weight_conversions", None) or []
            if isinstance(entry, WeightRenaming)
        ]
        meta = module.state_dict()
        for key, dtype in on_disk.items():
            name, _ = rename_source_key(key, renamings, [], module.base_model_prefix, meta)
            renamed[name] = dtype
    return {
        key: renamed.get(key, widest)
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point()
    }
