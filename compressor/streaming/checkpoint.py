"""A dense checkpoint of which nothing but shapes is in memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from compressor.checkpoint.format import find_lowrank, read_config
from compressor.data import LabelledData
from compressor.errors import ModelError, UsageError
from compressor.figures import example_length
from compressor.gathering import candidates_of
from compressor.layers.candidates import Candidates
from compressor.layers.unfusing import unfused
from compressor.methods.subject import Subject
from compressor.models import LoadedModel, load_model
from compressor.models.hub import snapshot
from compressor.models.transformers_lazy import LazyWeights
from compressor.settings import StreamSettings
from compressor.streaming.runnable import shape_probe, unpadded
from compressor.streaming.units import Units


@dataclass(frozen=True)
class Checkpoint:
    """A dense checkpoint of which nothing but shapes is in memory.

    Args:
        loaded: The dense model on the meta device.
        directory: Where its files lie.
        weights: Reads them.
        candidates: Its layers that can be factorized, as two forwards of shapes alone tell them.
        units: Its parts.
    """

    loaded: LoadedModel
    directory: Path
    weights: LazyWeights
    candidates: Candidates
    units: Units

    @property
    def module(self) -> Any:
        """The dense model on the meta device."""
        return self.loaded.module

    def subject(self, data: LabelledData | None) -> Subject:
        """Return what budgets are counted on: inputs are as long as the data's, if there is any."""
        inputs = self.loaded.example_inputs
        if data is not None:
            inputs = partial(inputs, length=example_length(data))
        return Subject(
            model=self.units.shapes,
            candidates=self.candidates,
            inputs=inputs,
            storage_dtypes=self.weights.dtypes,
        )


def open_checkpoint(settings: StreamSettings) -> Checkpoint:
    """Return the model on the meta device, and where its weights are.

    Raises:
        UsageError: If it is no transformers model, or compressed already, or a layer is asked for
            that shares its table with one in another part.
        ModelError: If its weights are no safetensors, or it does not run on shapes alone.
    """
    loaded = load_model(settings.model, skeleton=True)
    reference = settings.model.model
    if loaded.framework != "transformers":
        raise UsageError(
            f"--stream reads transformers directories of safetensors, and {reference} belongs to "
            f"{loaded.framework}. Leave out --stream."
        )
    directory = Path(reference) if Path(reference).is_dir() else snapshot(reference, weights=True)
    if find_lowrank(read_config(directory), where=str(directory / "config.json")) is not None:
        raise UsageError(f"{reference} is compressed already. Name the dense checkpoint.")
    module: Any = loaded.module
    weights = LazyWeights(directory, module)
    probe = shape_probe(loaded)
    try:
        with unpadded(module.config):
            apart = unfused(module.eval(), probe)
            candidates = candidates_of(
                apart,
                probe,
                heads=loaded.heads,
                include=settings.method.include,
                exclude=settings.method.exclude,
            )
    except (NotImplementedError, RuntimeError) as error:
        raise ModelError(
            f"{loaded.reference} does not run on shapes alone ({error}), and streaming never holds "
            "its weights. Leave out --stream."
        ) from error
    for name, layer in candidates.layers.items():
        if layer.tied:
            raise UsageError(
                f"{name} and {layer.tied[0]} share one table of "
                f"{layer.shape[0] * layer.shape[1]:,} values, which is factorized for both at "
                "once, and --stream holds one of them at a time. Leave out --include for it, or "
                "take --blockwise instead of --stream."
            )
    units = Units(module, apart, candidates, weights)
    return Checkpoint(loaded, directory, weights, candidates, units)
