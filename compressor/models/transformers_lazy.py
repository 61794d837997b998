"""Tensors of a transformers checkpoint, read one group at a time and never as a whole."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compressor.errors import ModelError
from compressor.models.transformers_names import without_expert_merges
from compressor.models.weights import PLAIN_FLOATS, TensorHeader, find_weight_files, read_header
from compressor.paths import worded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Part:
    """A tensor on disk that goes into a group of tensors in memory."""

    key: str
    pattern: str | None


class _Files(contextlib.ExitStack):
    """Shards that are open, each once: opening one maps the whole of it."""

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[Path, Any] = {}

    def tensor(self, path: Path, key: str) -> Tensor:
        """Return one tensor of a shard.

        Raises:
            ModelError: If it cannot be read, or is not finite.
        """
        from safetensors import SafetensorError, safe_open

        try:
            if path not in self._open:
                self._open[path] = self.enter_context(safe_open(path, framework="pt"))
            tensor: Tensor = self._open[path].get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read at {key}: {worded(error)}") from error
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(f"{path}: {key} holds NaN or infinite values; it is damaged.")
        return tensor


class LazyWeights:
    """A directory's tensors under the names they have in memory, read when they are asked for.

    Keys on disk are renamed, and tensors merged or split, by transformers' own conversions, a group
    at a time: the experts of one block, say, or a single tensor.

    Args:
        directory: A model directory with safetensors files.
        module: The model on the meta device. Of two tensors that it shares, the checkpoint may hold
            either, or both: as transformers does, those that differ are shared no more in it.
        unfused: Whether its fused modules were taken apart, in memory and on disk.

    Attributes:
        dtypes: Type on disk of every floating-point tensor, by its name in memory; the widest of
            those that are merged.

    Raises:
        ModelError: If weights are not safetensors, or some that the model needs are missing.
    """

    def __init__(self, directory: Path, module: PreTrainedModel, *, unfused: bool = False) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        self._module = module
        self._files: dict[str, Path] = {}
        header: dict[str, TensorHeader] = {}
        for path in find_weight_files(directory):
            if path.suffix != ".safetensors":
                raise ModelError(
                    f"{path.name} is no safetensors file, and only those can be read in parts. "
                    "Save the checkpoint with save_pretrained first."
                )
            found = read_header([path])
            header |= found
            self._files |= dict.fromkeys(found, path)
        self.conversions: list[Any] = list(get_model_conversion_mapping(module))
        if unfused:
            self.conversions = without_expert_merges(self.conversions)
        renamings = [entry for entry in self.conversions if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self.conversions if isinstance(entry, WeightConverter)]
        self._converters = {p: entry for entry in converters for p in entry.source_patterns}
        own = module.state_dict(keep_vars=True)
        prefix = module.base_model_prefix
        self._groups: dict[str, list[_Part]] = {}
        self._group_of: dict[str, str] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for key in sorted(header, key=_natural):
            name, pattern = rename_source_key(key, renamings, converters, prefix, own)
            if name not in own and key in own:
                name, pattern = key, None
            if name not in own:
                continue  # what the model has no use for is left behind, as transformers does
            self._groups.setdefault(name, []).append(_Part(key, pattern))
            for target in self._targets(name, pattern):
                self._group_of[target] = name
                self._note_dtype(target, header[key].dtype)
        self._settle_shared(own)
        own = module.state_dict(keep_vars=True)
        present = {id(own[name]) for name in self._group_of if name in own}
        missing = [n for n, p in module.named_parameters() if id(p) not in present]
        if missing:
            raise ModelError(
                f"{directory}: the checkpoint lacks {', '.join(missing[:3])}"
                f"{', …' if len(missing) > 3 else ''}."
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names in memory of all tensors on disk, in the module's order."""
        return tuple(name for name in self._module.state_dict() if name in self._group_of)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors by their names in memory, in the types they are stored in."""
        wanted = dict.fromkeys(names)
        found: dict[str, Tensor] = {}
        with _Files() as files:
            for first in dict.fromkeys(self._group_of[name] for name in wanted):
                for name, tensor in self._converted(first, files).items():
                    if name in wanted:
                        found[name] = tensor
        return found

    def _settle_shared(self, own: Mapping[str, Tensor]) -> None:
        """Have each tensor on disk under one name, the first of those that the module shares."""
        shared: dict[int, list[str]] = {}
        for name, tensor in own.items():
            shared.setdefault(id(tensor), []).append(name)
        for first, *others in shared.values():
            for name in others:
                if name not in self._group_of:
                    continue
                if first not in self._group_of:
                    self._rename(name, first)
                elif self._alike(first, name):
                    self._forget(name)
                else:
                    _share_no_more(self._module, name)

    def _alike(self, one: str, other: str) -> bool:
        found = self.read((one, other))
        return torch.equal(found[one], found[other])

    def _rename(self, name: str, to: str) -> None:
        self._groups[to] = self._groups.pop(self._group_of.pop(name))
        self._group_of[to] = to
        if name in self.dtypes:
            self.dtypes[to] = self.dtypes.pop(name)

    def _forget(self, name: str) -> None:
        self._groups.pop(self._group_of.pop(name), None)
        self.dtypes.pop(name, None)

    def _converted(self, first: str, files: _Files) -> dict[str, Tensor]:
        """Return one group's tensors as transformers converts them."""
        from transformers.core_model_loading import WeightRenaming

        parts = self._groups[first]
        pattern = parts[0].pattern
        transform: Any = (
            WeightRenaming(parts[0].key, first)
            if pattern is None
            else copy.deepcopy(self._converters[pattern])
        )
        for part in parts:
            tensor = files.tensor(self._files[part.key], part.key)
            transform.add_tensor(first, part.key, part.pattern or part.key, tensor)
        realized = transform.convert(first, model=self._module, config=self._module.config)
        return {n: t[0] if isinstance(t, list) else t for n, t in realized.items()}

    def _targets(self, name: str, pattern: str | None) -> tuple[str, ...]:
        if pattern is None:
            return (name,)
        targets = self._converters[pattern].target_patterns
        return tuple(name.replace(targets[0], target) for target in targets)

    def _note_dtype(self, name: str, dtype: torch.dtype | None) -> None:
        if dtype not in PLAIN_FLOATS:
            return
        assert dtype is not None
        known = self.dtypes.get(name, dtype)
        self.dtypes[name] = max(known, dtype, key=lambda d: torch.finfo(d).bits)


def _share_no_more(module: PreTrainedModel, name: str) -> None:
    owner, _, child = name.rpartition(".")
    part = module.get_submodule(owner)
    tensor = part._parameters[child]
    assert tensor is not None
    part._parameters[child] = torch.nn.Parameter(torch.empty_like(tensor), requires_grad=False)
    module.all_tied_weights_keys.pop(name, None)


def on_disk(
    module: PreTrainedModel, tensors: dict[str, Tensor], weights: LazyWeights, *, unfused: bool
) -> dict[str, Tensor]:
    """Return some of a factorized model's tensors under the keys that ``save_pretrained`` writes.

    Args:
        module: The dense model on the meta device.
        tensors: Tensors by their names in memory, all of each group.
        weights: The checkpoint they come from.
        unfused: Whether fused modules of the model were taken apart.
    """
    from transformers.core_model_loading import revert_weight_conversion

    used = [entry for entry in weights.conversions if entry.was_used()]
    module.__dict__["_weight_conversions"] = without_expert_merges(used) if unfused else used
    reverted: dict[str, Tensor] = revert_weight_conversion(module, tensors)
    return {key: tensor.contiguous() for key, tensor in reverted.items()}


def _natural(key: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key to sort by in which numbers count as numbers, so that experts are in order."""
    parts = key.split(".")
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)
