"""Calling timm's create_model with what a config.json says, which may come from a stranger."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from torch import nn

from compressor.errors import CompressorError, ModelError
from compressor.paths import worded

NO_MODEL_ARGUMENTS = (
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_strict",
    "checkpoint_path",
    "cache_dir",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
    "device",
    "dtype",
)
"""Arguments of create_model that make no difference to shapes, but to what is loaded or run."""


def nearest_architecture(name: str) -> str | None:
    """Return the timm architecture whose name is nearest to ``name``, if any is near."""
    import timm

    nearest = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.6)
    return nearest[0] if nearest else None


def known_architecture(
    config: Mapping[str, object], arguments: Mapping[str, object], reference: str
) -> str:
    """Return the architecture of a config.json that may come from a stranger.

    create_model would follow a name with a prefix to another place, and load a checkpoint that is
    named beside it.

    Raises:
        ModelError: If it is no architecture of timm, or an argument is none of a model.
    """
    import timm

    name = config.get("architecture")
    if not isinstance(name, str) or ":" in name or "/" in name or not timm.is_model(name):
        nearest = nearest_architecture(name) if isinstance(name, str) else None
        hint = f" Did you mean {nearest!r}?" if nearest else ""
        raise ModelError(
            f"{reference}/config.json: {name!r} is no architecture that timm knows.{hint}"
        )
    for key in arguments:
        if key in NO_MODEL_ARGUMENTS:
            raise ModelError(
                f"{reference}/config.json: model_args holds {key}, which is no argument of a "
                "model. Remove it."
            )
    return name


def create(name: str, arguments: Mapping[str, Any], reference: str) -> nn.Module:
    """Build a timm model without weights.

    Raises:
        ModelError: If timm cannot.
    """
    import timm

    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    except CompressorError:
        raise
    except Exception as error:  # constructors meet odd arguments with whatever they run into
        raise ModelError(
            f"{reference}: timm cannot build {name}: {type(error).__name__}: {worded(error)}"
        ) from error
    return module
