"""Short hashes that tell whether an earlier result still holds: of code, weights and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn

WATCHED = (
    "collapse",
    "data",
    "evaluation",
    "forward.py",
    "layers",
    "methods",
    "models",
    "stages.py",
    "tokens.py",
    "checkpoint/storage.py",
)
"""Parts of the package that a figure may depend on; reports and commands are none of them."""


def code_version(*, leave_out: Collection[str] = (), root: Path = Path(__file__).parent) -> str:
    """Return a hash of the package's sources that figures may depend on.

    Args:
        leave_out: Files that the figure in question does not depend on, relative to ``root``.
        root: Directory of the package.
    """
    files = sorted(
        file
        for part in WATCHED
        for file in ([root / part] if part.endswith(".py") else (root / part).rglob("*.py"))
        if file.relative_to(root).as_posix() not in leave_out
    )
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def hash_of(content: object) -> str:
    """Return a short hash of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def hash_of_weights(module: nn.Module) -> str:
    """Return a hash of a module's tensors, for one that came from no file."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}{tuple(tensor.shape)}\0".encode())
        digest.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
