"""Saving a factorized model built in Python, and reading which of its layers are factorized."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from compressor.checkpoint.format import LowRankConfig, LowRankLayer
from compressor.checkpoint.save import save_directory
from compressor.forward import Inputs
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.layers.surgery import unfused_modules
from compressor.models import describe


def save(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    extra_files: Mapping[str, str] | None = None,
    example: Inputs | None = None,
) -> int:
    """Save a factorized model as a directory that `compressor.load` rebuilds.

    Args:
        model: The model; transformers and timm models keep their own config.json.
        directory: Where to write; whole or not at all.
        overwrite: Replace ``directory`` if this package wrote it.
        extra_files: Text of further files by name.
        example: Inputs of one or more samples. `compressor verify` later replays made-up inputs of
            their shapes, types and ranges; transformers and timm models, and modules with an input
            transform, need none.

    Returns:
        Size of the weight files in bytes.

    Raises:
        OutputExistsError: If ``directory`` exists and may not be replaced.
        CheckpointError: If there is no space, no permission, or the disk fails.
    """
    return save_directory(
        describe(model),
        Path(directory),
        lowrank=lowrank_config(model),
        extra_files=extra_files,
        overwrite=overwrite,
        example=example,
    )


def lowrank_config(model: nn.Module) -> LowRankConfig:
    """Return kind, rank and bias of every factorized layer, and what was taken apart for it."""
    return LowRankConfig(
        layers={
            name: LowRankLayer(
                kind=module.kind, rank=module.rank, bias=getattr(module, "bias", None) is not None
            )
            for name, module in model.named_modules()
            if isinstance(module, LOW_RANK_TYPES)
        },
        unfused=tuple(unfused_modules(model)),
    )
