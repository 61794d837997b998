"""The names that transformers gives a tensor on disk and in memory, which can differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


def without_expert_merges(conversions: Sequence[Any]) -> list[Any]:
    """Return transformers' weight conversions but for those that merge experts into one tensor.

    A checkpoint with factorized experts holds each expert's matrices under the names they have in
    memory; the parameters of blocks that stayed dense then do too.
    """
    from transformers.core_model_loading import WeightConverter

    return [
        entry
        for entry in conversions
        if not (
            isinstance(entry, WeightConverter)
            and any("experts" in target for target in entry.target_patterns)
        )
    ]


def conversions_of(module: PreTrainedModel) -> list[Any]:
    """Return the conversions that ``save_pretrained`` would revert for a module."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import PrefixChange

    known = getattr(module, "_weight_conversions", None)
    if known is not None:
        return list(known)
    mapping = get_model_conversion_mapping(module, add_legacy=False)
    return [entry for entry in mapping if not isinstance(entry, PrefixChange)]
