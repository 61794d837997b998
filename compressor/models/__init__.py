"""Where a model comes from: one call for every source, and one for modules built in Python."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from compressor.checkpoint.format import find_lowrank, read_config
from compressor.errors import ModelError, NoSuchModelError, UsageError
from compressor.models.gguf import gguf_file, load_gguf
from compressor.models.source import (
    MODEL_SOURCES,
    ImageTransform,
    LoadedModel,
    ModelOptions,
    ModelSource,
)
from compressor.models.weights import SUFFIXES
from compressor.paths import state
from compressor.settings import ModelSettings

__all__ = [
    "MODEL_SOURCES",
    "ImageTransform",
    "LoadedModel",
    "ModelOptions",
    "ModelSource",
    "describe",
    "load_model",
    "resolve_device",
]

PLAIN = "torch"
"""Name of the source that owns any module."""


def load_model(settings: ModelSettings, *, skeleton: bool = False) -> LoadedModel:
    """Load the model that ``settings`` names, from whichever source knows it.

    Args:
        settings: Which model, and what to know beside its name.
        skeleton: Build shapes on the meta device instead of reading weights, where the source
            can. A directory that this package saved is always read whole.

    Raises:
        NoSuchModelError: If there is no such model.
        ModelError: If its checkpoint is damaged, quantized, not finite, or made for another
            architecture or number of classes.
        UsageError: If a factory is given that would not be called.
        CheckpointError: If a directory has no config.json, or a newer version saved it.
    """
    options = options_from(settings)
    reference = settings.model
    if not reference:
        raise NoSuchModelError(
            _unknown(reference)
        )  # a Path would take it for the directory at work
    directory = Path(reference)
    if gguf_file(reference, options.checkpoint) is not None:
        _refuse_factory(reference, options)
        return load_gguf(reference, options)
    if directory.is_dir():
        config = read_config(directory)
        saved = find_lowrank(config, where=str(directory / "config.json"))
        if saved is not None:
            if saved.framework != PLAIN:
                _refuse_factory(reference, options)
            return MODEL_SOURCES.get(saved.framework).rebuild(directory, config, options)
    elif directory.is_file() and directory.suffix in SUFFIXES:
        raise ModelError(
            f"{reference} is a file of weights. Name the architecture as the model, and pass the "
            f"file beside it: MODEL --checkpoint {reference}"
        )
    _refuse_factory(reference, options)
    for _, source in MODEL_SOURCES.items():
        if source.recognises(reference, options):
            if skeleton:
                return source.skeleton(reference, options)
            return source.load(reference, options)
    raise NoSuchModelError(_unknown(reference))


def describe(module: nn.Module) -> LoadedModel:
    """Describe a module built in Python as if it had been loaded; the module is not changed.

    Args:
        module: A transformers PreTrainedModel, a timm model, or any torch module.
    """
    owners = [name for name, source in MODEL_SOURCES.items() if source.owns(module)]
    owners.sort(key=lambda name: name == PLAIN)  # a model of a framework is also a torch module
    return MODEL_SOURCES.get(owners[0]).describe(module)


def options_from(settings: ModelSettings) -> ModelOptions:
    """Return the options that a source gets from the settings."""
    return ModelOptions(
        checkpoint=settings.checkpoint,
        input_size=settings.input_size,
        mean=settings.mean,
        std=settings.std,
        num_classes=settings.num_classes,
        factory=settings.factory,
        trust_remote_code=settings.trust_remote_code,
        device=resolve_device(settings.device),
    )


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: If the machine has no such device.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    kind = name.partition(":")[0]
    if not available.get(kind, True):
        raise UsageError(
            f"This machine has no {kind} device that torch can use. Pass --device cpu."
        )
    return torch.device(name)


def _refuse_factory(reference: str, options: ModelOptions) -> None:
    """Refuse a factory that would not be called.

    Raises:
        UsageError: If there is one.
    """
    if options.factory is not None:
        raise UsageError(
            f"--factory rebuilds a plain torch model that compressor saved, and {reference} is "
            "none. Leave it out; a factory itself is given as the model: path/to/file.py:factory."
        )


def _unknown(reference: str) -> str:
    """Return the message for a reference that no source recognises."""
    from compressor.models.timm_build import nearest_architecture

    nearest = nearest_architecture(reference)
    hint = f" Did you mean {nearest!r}?" if nearest else ""
    stands = f": {reference} {state(reference)}" if reference else ": its name is empty"
    return (
        f"No model {reference!r}{stands}.{hint} Expected a transformers or timm directory or hub "
        'id (owner/name), a timm architecture (list them: python -c "import timm; '
        'print(timm.list_models())"), path/to/file.py:factory, or a directory that compressor '
        "saved."
    )
