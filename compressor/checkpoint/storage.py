"""Rounding a model computed in float32 to the types its checkpoint stores."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressor.errors import LayerError


def storage_dtype(
    key: str, tensor: Tensor, storage_dtypes: Mapping[str, torch.dtype]
) -> torch.dtype:
    """Return the type that a tensor is stored in.

    A tensor that was in the dense checkpoint keeps its type there. The factors of a layer, and a
    bias that it had not before, take the type of the weight they replace; layers of a fused module
    take the widest of its parameters'.

    Args:
        key: Name in the factorized module's state dict.
        tensor: The tensor itself; integers keep their type.
        storage_dtypes: Types in the dense checkpoint, by name.
    """
    if not tensor.is_floating_point():
        return tensor.dtype
    if key in storage_dtypes:
        return storage_dtypes[key]
    owner, _, _ = key.rpartition(".")
    for name in (f"{owner}.weight", f"{owner.removesuffix('.down')}.weight"):
        if name in storage_dtypes:
            return storage_dtypes[name]
    # A fused module that was taken apart: its matrices were parameters of the module itself.
    while owner := owner.rpartition(".")[0]:
        own = {d for name, d in storage_dtypes.items() if name.rpartition(".")[0] == owner}
        if floats := [dtype for dtype in own if dtype.is_floating_point]:
            return max(floats, key=lambda dtype: torch.finfo(dtype).bits)
    return tensor.dtype


def round_to_storage_(
    module: nn.Module, storage_dtypes: Mapping[str, torch.dtype]
) -> dict[str, torch.dtype]:
    """Round every floating-point tensor of ``module`` through its storage type, in place.

    The module goes on computing in its own type, and equals bit for bit what is loaded from the
    saved file.

    Args:
        module: A factorized (or dense) module.
        storage_dtypes: Types in the dense checkpoint, by name.

    Returns:
        The storage type of every tensor of the module's state dict.

    Raises:
        LayerError: If a finite value has no finite rounding; nothing has been changed then.
    """
    state = module.state_dict()
    dtypes = {key: storage_dtype(key, tensor, storage_dtypes) for key, tensor in state.items()}
    rounded = _cast(state, dtypes)
    with torch.no_grad():
        for key, tensor in state.items():
            if dtypes[key] != tensor.dtype:
                tensor.copy_(rounded[key])
    return dtypes


def cast_state(module: nn.Module, storage_dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Return the state dict as it is stored: on the CPU, contiguous, in the storage types.

    Names that share a tensor in the module share one in the result.

    Raises:
        LayerError: If a finite value has no finite rounding.
    """
    return cast_tensors(module.state_dict(), storage_dtypes)


def cast_tensors(
    tensors: Mapping[str, Tensor], storage_dtypes: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Return some tensors of a model as they are stored; see `cast_state`.

    Raises:
        LayerError: If a finite value has no finite rounding.
    """
    return _cast(tensors, {k: storage_dtype(k, t, storage_dtypes) for k, t in tensors.items()})


def _cast(state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    done: dict[tuple[object, ...], Tensor] = {}
    cast: dict[str, Tensor] = {}
    for key, tensor in state.items():
        identity = (
            tensor.data_ptr() or key,  # empty tensors have no address of their own
            tensor.shape,
            tensor.stride(),
            tensor.dtype,
            dtypes[key],
        )
        if identity not in done:
            done[identity] = _rounded(key, tensor.detach(), dtypes[key])
        cast[key] = done[identity]
    return cast


def _rounded(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    stored = tensor.to(device="cpu", dtype=dtype).contiguous()
    if stored.untyped_storage().nbytes() > stored.nbytes:  # part of a parameter taken apart
        stored = stored.clone()
    if dtype != tensor.dtype and tensor.is_floating_point():
        lost = torch.isfinite(tensor.cpu()) & ~torch.isfinite(stored)
        if lost.any():
            owner, _, name = key.rpartition(".")
            largest = float(tensor.abs().max())
            raise LayerError(
                owner,
                f"{name} holds {largest:.3g}, but the checkpoint stores {dtype} whose largest "
                f"value is {torch.finfo(dtype).max:.3g}. Exclude the layer (--exclude {owner}), "
                "or store the checkpoint in float32 or bfloat16 before compressing it.",
            )
    return stored
