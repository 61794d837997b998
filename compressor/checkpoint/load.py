"""Loading a directory that this package saved."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint.format import SavedBlock, find_lowrank, read_saved_config
from compressor.errors import CheckpointError, UsageError
from compressor.layers.surgery import install_skeletons, structural_copy
from compressor.models import options_from, resolve_device
from compressor.models.loading import load_exactly
from compressor.models.module import rebuild_into
from compressor.models.source import MODEL_SOURCES, LoadedModel, ModelOptions
from compressor.models.weights import find_weight_files, read_state_dict
from compressor.settings import ModelSettings


def load(
    directory: str | os.PathLike[str],
    *,
    model: nn.Module | Callable[[], nn.Module] | str | None = None,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Load a model that `compressor.save` or the command line saved.

    Args:
        directory: The saved directory.
        model: What the low-rank layers go into, for plain torch modules only: the dense module as
            it was before compression (changed in place; its weights do not matter), a function
            that builds it, or ``path/to/file.py:factory``. transformers and timm directories
            tell by themselves.
        device: Where the model goes.

    Returns:
        The model in eval mode, with the logits that it had when it was saved.

    Raises:
        CheckpointError: If the directory was not saved by this package, by a newer version, or
            holds a plain torch module and ``model`` is not given.
        LayerError: If ``model`` has not the layers that were factorized.
        ModelError: If weights are damaged or do not fit.
    """
    path = Path(directory)
    where = torch.device(device)
    if model is None or isinstance(model, str):
        return load_saved(path, ModelOptions(device=where, factory=model)).module
    config = read_saved_config(path)
    saved = find_lowrank(config, where=str(path / "config.json"))
    if saved is None or saved.framework != "torch":
        raise UsageError(
            f"{path} is no saved plain torch module, so model= does not apply. Leave it out."
        )
    module = model if isinstance(model, nn.Module) else model()
    return rebuild_into(module, path, config, ModelOptions(device=where)).module


def apply_(model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Make a dense model the saved one, in place: swap its layers, and take the saved weights.

    Type, device and mode of the model stay as they are. It is left alone if anything does not fit.

    Args:
        model: The dense model as it was before compression, of any framework; its weights do not
            matter.
        directory: A directory that this package saved.

    Returns:
        ``model`` itself.

    Raises:
        CheckpointError: If the directory was not saved by this package, or by a newer version.
        LayerError: If ``model`` has not the layers that were factorized.
        ModelError: If the weights are damaged or do not fit.
    """
    path = Path(directory)
    lowrank = _saved(path).lowrank
    state = _saved_state(path)
    trial = structural_copy(model).to("meta")
    install_skeletons(trial, lowrank.layers, unfused=lowrank.unfused)
    load_exactly(trial, {key: tensor.to("meta") for key, tensor in state.items()}, where=str(path))
    install_skeletons(model, lowrank.layers, unfused=lowrank.unfused)
    load_exactly(model, state, where=str(path))
    return model


def load_saved(directory: Path, options: ModelOptions | ModelSettings) -> LoadedModel:
    """Load a saved directory with everything that came with it.

    Args:
        directory: The saved directory.
        options: Device, factory and input overrides.

    Raises:
        CheckpointError: If this package did not save the directory.
    """
    if isinstance(options, ModelSettings):
        options = options_from(options)
    source = MODEL_SOURCES.get(_saved(directory).framework)
    return source.rebuild(directory, read_saved_config(directory), options)


def _saved(directory: Path) -> SavedBlock:
    """Return the low-rank block of a directory.

    Raises:
        CheckpointError: If it has none.
    """
    saved = find_lowrank(read_saved_config(directory), where=str(directory / "config.json"))
    if saved is None:
        raise CheckpointError(
            f"{directory} was not saved by compressor: its config.json has no low-rank block. Load "
            "it with its own framework, or compress it first."
        )
    return saved


def _saved_state(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of a saved directory by their names in memory."""
    if _saved(directory).framework != "torch":
        return dict(load_saved(directory, ModelOptions()).module.state_dict())
    state: dict[str, Tensor] = {}
    for file in find_weight_files(directory):
        state |= read_state_dict(file)
    return state


__all__ = ["apply_", "load", "load_saved", "resolve_device"]
