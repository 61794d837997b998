"""What a timm module's pretrained_cfg says of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn


def pretrained_cfg(module: nn.Module) -> dict[str, Any]:
    """Return the module's own pretrained_cfg, empty where it has none."""
    return as_dict(getattr(module, "pretrained_cfg", None))


def as_dict(value: object) -> dict[str, Any]:
    """Return a mapping as a dict, anything else as an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def classifier_names(module: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that make the logits."""
    named = pretrained_cfg(module).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def label_names(module: nn.Module) -> list[str] | None:
    """Return the name of each class, where the config tells them."""
    names = pretrained_cfg(module).get("label_names")
    return [str(name) for name in names] if isinstance(names, Iterable) else None
