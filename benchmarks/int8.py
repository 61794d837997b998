"""Low rank and int8 together: size and accuracy of a text classifier, dense against compressed.

python -m benchmarks.int8 DENSE COMPRESSED --data DATA [--limit 856]

Linear layers are quantized by torchao (``pip install torchao``), weights alone or with activations.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torchao import quantization

from compressor.data import load_data
from compressor.evaluation.loop import evaluate
from compressor.forward import Forward
from compressor.models import LoadedModel, load_model
from compressor.quantization import quantize_
from compressor.settings import DataSettings, ModelSettings

CONFIGS = {
    "float32": None,
    "int8 weights": quantization.Int8WeightOnlyConfig,
    "int8 weights and activations": quantization.Int8DynamicActivationInt8WeightConfig,
}


@dataclass(frozen=True)
class Row:
    """One model in one precision; bytes of its parameters and buffers in memory."""

    model: str
    precision: str
    bytes: int
    accuracy: float | None
    kl_to_dense: float | None


def quantized(module: nn.Module, precision: str) -> nn.Module:
    """Return a copy whose linear layers, both factors of thin ones, are quantized."""
    config = CONFIGS[precision]
    made = copy.deepcopy(module)
    if config is not None:
        quantize_(made, config())
    return made


def size(module: nn.Module) -> int:
    """Return the bytes of all parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(t.numel() * t.element_size() for tensor in tensors for t in _plain(tensor))


def rows(models: dict[str, LoadedModel], data: DataSettings, limit: int | None) -> Iterator[Row]:
    """Evaluate every model in every precision on the test data."""
    reference = None
    for name, loaded in models.items():
        settings = data.model_copy(update={"limit": limit})
        test = load_data(settings, loaded, seed=0, splits=("test",)).test
        for precision in CONFIGS:
            module = quantized(loaded.module, precision)
            found = evaluate(module, test, forward=Forward(), dense_logits=reference)
            if reference is None:
                reference = found.logits
            yield Row(name, precision, size(module), found.accuracy, found.kl_to_dense)


def main() -> None:
    """Print one line of JSON a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dense")
    parser.add_argument("compressed")
    parser.add_argument("--data", required=True)
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--limit", type=int)
    given = parser.parse_args()
    models = {
        name: load_model(ModelSettings(model=reference, device="cpu"))
        for name, reference in (("dense", given.dense), ("low rank", given.compressed))
    }
    data = DataSettings(data=given.data, max_length=given.max_length, batch_size=32)
    for row in rows(models, data, given.limit):
        print(json.dumps(asdict(row)), flush=True)


def _plain(tensor: Tensor) -> list[Tensor]:
    """Return the plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in _plain(getattr(tensor, name))]


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
