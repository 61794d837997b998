"""The shards of a streamed checkpoint, a unit each."""

from __future__ import annotations

import math
from pathlib import Path

from compressor.checkpoint.format import LowRankConfig, LowRankLayer
from compressor.checkpoint.storage import cast_tensors
from compressor.layers.candidates import Candidates, specs_of
from compressor.methods.plan import Plan
from compressor.models.transformers_lazy import on_disk
from compressor.models.weights import read_header
from compressor.progress import Progress
from compressor.streaming.checkpoint import Checkpoint
from compressor.streaming.compressed import compressed_unit
from compressor.streaming.decompositions import Spectra
from compressor.streaming.output import shard_name, write_shard
from compressor.streaming.units import Units


def write_units(
    checkpoint: Checkpoint, made: Plan, spectra: Spectra, work: Path, progress: Progress
) -> tuple[dict[str, list[str]], int]:
    """Write a shard for each unit that has none; return the keys of each, and all parameters.

    Args:
        checkpoint: The dense model.
        made: Ranks and recipe.
        spectra: Where factors come from.
        work: The directory that shards go to.
        progress: Told of each unit.
    """
    units, weights = checkpoint.units, checkpoint.weights
    keys: dict[str, list[str]] = {}
    parameters = 0
    for number, unit in enumerate(
        progress.track(units, description="stream", total=len(units)), start=1
    ):
        path = work / shard_name(number, len(units))
        if not path.is_file():
            compressed = compressed_unit(units, unit.name, made.ranks, made.recipe, spectra)
            tensors = cast_tensors(compressed, weights.dtypes)
            apart = bool(units.unfused)
            write_shard(on_disk(checkpoint.module, tensors, weights, unfused=apart), path)
        header = read_header([path])
        keys[path.name] = list(header)
        parameters += sum(math.prod(entry.shape) for entry in header.values())
    return keys, parameters


def lowrank_of(units: Units, candidates: Candidates, made: Plan) -> LowRankConfig:
    """Return kind, rank and bias of every factorized layer, and what was taken apart for it."""
    layers = candidates.layers
    return LowRankConfig(
        layers={
            part: LowRankLayer(kind=spec.kind, rank=spec.rank, bias=spec.bias)
            for name, rank in made.ranks.items()
            if rank <= layers[name].break_even_rank
            for part, spec in specs_of(units.shapes, layers[name], rank).items()
        },
        unfused=units.unfused,
    )
