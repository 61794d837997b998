"""The low-rank block of a saved config.json: one schema for all frameworks, with a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compressor.errors import CheckpointError

FORMAT_VERSION = 1


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
        versions: Versions of the packages that wrote the directory.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quant_method: Literal["lowrank"] = "lowrank"
    format_version: int = FORMAT_VERSION
    layers: dict[str, LowRankLayer]
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
    try:
        return LowRankConfig.model_validate(block)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise CheckpointError(f"{where}: low-rank block, key {key}: {problem['msg']}") from error
