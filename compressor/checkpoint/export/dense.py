"""The factors multiplied back: a directory of the framework itself, as large as before."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from compressor.checkpoint.export.exporter import EXPORTERS, stored_precision
from compressor.checkpoint.export.logits import as_function
from compressor.checkpoint.format import read_config
from compressor.checkpoint.storage import cast_state
from compressor.layers.surgery import densify, structural_copy
from compressor.models import MODEL_SOURCES, LoadedModel, ModelOptions
from compressor.models.module import rebuild_into


class DenseExporter:
    """A directory that transformers or timm loads without this package."""

    name = "dense"
    packages: tuple[str, ...] = ()
    suffix: str | None = None
    note: str | None = "A dense directory is as large as the model was before compression."

    def tolerance(self, model: LoadedModel) -> float:
        """Return 1e-4, or ten roundings of the type that the checkpoint stores."""
        return max(1e-4, 10 * torch.finfo(stored_precision(model)).eps)

    def write(self, model: LoadedModel, example: dict[str, Tensor], path: Path) -> None:
        """Write weights and config.json as the framework itself would."""
        del example
        source = MODEL_SOURCES.get(model.framework)
        dense = replace(model, module=_multiplied(model.module))
        state = cast_state(dense.module, dense.storage_dtypes)
        path.mkdir()
        source.write_weights(dense, path, state, max_shard_size="5GB")
        source.write_architecture(dense, path, None)

    def run(self, model: LoadedModel, path: Path, inputs: dict[str, Tensor]) -> Tensor:
        """Load the directory as the framework does, and call the model."""
        config = read_config(path)
        if model.framework == "torch":  # its Python code is in memory alone
            module = copy.deepcopy(_multiplied(model.module))
            again = rebuild_into(module, path, config, ModelOptions())
        else:
            again = MODEL_SOURCES.get(model.framework).rebuild(path, config, ModelOptions())
        with torch.no_grad():
            logits = as_function(again.module, inputs)(**inputs)
        assert isinstance(logits, Tensor)
        return logits


def _multiplied(module: nn.Module) -> nn.Module:
    """Return a copy with dense layers; tensors of other layers are shared with ``module``."""
    dense = structural_copy(module)
    densify(dense)
    return dense


EXPORTERS.register("dense")(DenseExporter())
