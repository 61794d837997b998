"""``onnx``: the module as an ONNX graph in onnxruntime, on the CPU."""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compressor.checkpoint.export.exporter import EXPORTERS
from compressor.checkpoint.export.logits import named
from compressor.errors import MissingExtraError, ModelError
from compressor.evaluation.runtimes.runtime import RUNTIMES, Timed
from compressor.forward import Forward, Inputs, batch_length, first_tensor, repeated
from compressor.models import describe


@dataclass(frozen=True)
class Onnx:
    """What ``compressor export --to onnx`` writes, with as many threads as torch has."""

    name: str = "onnx"

    def prepare(self, model: nn.Module, forward: Forward, inputs: Inputs) -> Timed:
        """Export to a temporary file, open it, and return one run of it."""
        del forward  # the graph holds the model's own forward, down to all its logits
        exporter = EXPORTERS.get("onnx")
        if any(importlib.util.find_spec(package) is None for package in exporter.packages):
            raise MissingExtraError("The runtime onnx", "'compressor[export]'")
        if first_tensor(inputs).device.type != "cpu":
            raise ModelError("The runtime onnx runs on the CPU. Give --device cpu with it.")
        import onnxruntime

        # A traced batch of 1 would become a constant.
        example = named(repeated(inputs, max(batch_length(inputs), 2)))
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "model.onnx"
            exporter.write(describe(model), example, path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        given = named(inputs)
        feed = {entry.name: given[entry.name].numpy() for entry in session.get_inputs()}
        return lambda: session.run(None, feed)


RUNTIMES.register("onnx")(Onnx())
