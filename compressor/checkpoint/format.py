"""The low-rank block of a saved config.json: one schema for all frameworks, with a version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from compressor.errors import CheckpointError, NoSuchCheckpointError
from compressor.jsonfile import read_object, validated
from compressor.paths import state

FORMAT_VERSION = 3
"""2: ``unfused``. 3: the kind ``conv2d-spatial``."""


class LowRankLayer(BaseModel):
    """What one factorized layer became.

    Args:
        kind: Name of the layer kind, as registered.
        rank: Number of singular directions kept.
        bias: Whether the factorized layer has a bias.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    rank: Annotated[int, Field(ge=1)]
    bias: bool


class LowRankConfig(BaseModel):
    """The block itself: ``quantization_config`` for transformers, ``lowrank`` elsewhere.

    Args:
        quant_method: Always ``"lowrank"``; transformers finds the quantizer by it.
        format_version: Version of this schema.
        layers: Factorized layers by the module's name in memory.
        unfused: Modules that were taken apart before their layers were factorized (mixtures of
            experts, attention with one parameter for all projections, wide grouped convolutions).
        versions: Versions of the packages that wrote the directory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quant_method: Literal["lowrank"] = "lowrank"
    format_version: int = FORMAT_VERSION
    layers: dict[str, LowRankLayer]
    unfused: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)


def parse_lowrank(block: Mapping[str, object], *, where: str) -> LowRankConfig:
    """Validate a low-rank block read from disk.

    Args:
        block: The parsed JSON.
        where: File it came from, for messages.

    Raises:
        CheckpointError: If it was written by a newer version, or is malformed.
    """
    version = block.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{where} has format_version {version}; this compressor reads up to {FORMAT_VERSION}. "
            "Upgrade it: pip install --upgrade compressor"
        )
    return validated(LowRankConfig, block, f"{where}, low-rank block", CheckpointError)


class SavedBlock(NamedTuple):
    """The low-rank block found in a config.json, and the model source it belongs to."""

    framework: str
    lowrank: LowRankConfig


def read_config(directory: Path) -> dict[str, object]:
    """Return the parsed config.json of a model directory.

    Raises:
        CheckpointError: If there is none, or it is no JSON object.
    """
    return read_object(
        directory / "config.json",
        CheckpointError,
        missing=f"{directory} holds no config.json, so it is no model directory. Expected one "
        "that transformers, timm or compressor saved; for bare weights name the architecture and "
        "pass them with --checkpoint.",
    )


def read_saved_config(directory: Path) -> dict[str, object]:
    """Return the parsed config.json of a directory that was named as a saved one.

    Raises:
        NoSuchCheckpointError: If there is no such directory.
        CheckpointError: As `read_config`.
    """
    if not directory.is_dir():
        raise NoSuchCheckpointError(
            f"There is no directory {directory}: it {state(directory)}. Expected one that "
            "compressor saved."
        )
    return read_config(directory)


def find_lowrank(config: Mapping[str, object], *, where: str) -> SavedBlock | None:
    """Return the low-rank block in a config.json, or None if this package did not write it.

    Args:
        config: The parsed config.json.
        where: File it came from, for messages.

    Raises:
        CheckpointError: If the block is malformed or too new.
    """
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and quantization.get("quant_method") == "lowrank":
        return SavedBlock("transformers", parse_lowrank(quantization, where=where))
    block = config.get("lowrank")
    if isinstance(block, dict):
        framework = "torch" if config.get("framework") == "torch" else "timm"
        return SavedBlock(framework, parse_lowrank(block, where=where))
    return None
