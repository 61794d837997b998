"""ONNX, for onnxruntime and everything that reads ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.checkpoint.export.exporter import EXPORTERS
from compressor.checkpoint.export.logits import TEXT_INPUTS, as_function
from compressor.checkpoint.export.tracing import tracing
from compressor.errors import ModelError
from compressor.models import LoadedModel

LARGEST = 2_000_000_000
"""Bytes that fit one ONNX file (protobuf's limit is 2 GiB)."""


class OnnxExporter:
    """Two thin products a layer, as in the model; batch (and text length) are dynamic."""

    name = "onnx"
    packages: tuple[str, ...] = ("onnx", "onnxscript", "onnxruntime")
    suffix: str | None = ".onnx"
    note: str | None = "ONNX holds the weights in float32."

    def tolerance(self, model: LoadedModel) -> float:
        """Return 1e-4: onnxruntime orders its sums in another way."""
        del model
        return 1e-4

    def write(self, model: LoadedModel, example: dict[str, Tensor], path: Path) -> None:
        """Trace the model by torch.export and translate the graph.

        Raises:
            ModelError: If the file would be too large, or an operator has no counterpart.
        """
        size = sum(p.numel() * p.element_size() for p in model.module.parameters())
        if size > LARGEST:
            raise ModelError(
                f"The model has {size:,} bytes of float32 weights; one ONNX file holds "
                f"{LARGEST:,}. Use --to torch-export, or --to safetensors."
            )
        axes = {0: "batch", 1: "length"} if tuple(example) == TEXT_INPUTS else {0: "batch"}
        with tracing("ONNX", model):
            torch.onnx.export(
                as_function(model.module, example),
                (),
                path,
                kwargs=example,
                input_names=list(example),
                output_names=["logits"],
                dynamic_shapes=dict.fromkeys(example, axes),
                dynamo=True,
                external_data=False,
                verbose=False,
            )

    def run(self, model: LoadedModel, path: Path, inputs: dict[str, Tensor]) -> Tensor:
        """Run onnxruntime on the CPU."""
        import onnxruntime

        del model
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        feed: dict[str, Any] = {
            given.name: inputs[given.name].numpy() for given in session.get_inputs()
        }
        return torch.from_numpy(session.run(["logits"], feed)[0])


EXPORTERS.register("onnx")(OnnxExporter())
