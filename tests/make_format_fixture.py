"""Writes the directories of tests/format that later versions must go on reading.

Run it once when FORMAT_VERSION rises: ``python -m tests.make_format_fixture``. Directories of older
versions are never written again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

import compressor
from compressor.checkpoint.format import FORMAT_VERSION
from compressor.forward import call, logits_of
from tests.contract import architectures, small_models

FOLDER = Path(__file__).parent / "format"


def main() -> None:
    """Write one directory a framework, with inputs and logits beside it."""
    for name, framework in (("transformers-qwen2-moe", "transformers"), ("timm-swin", "timm")):
        entry = architectures.ARCHITECTURES[name]
        inputs = entry.inputs(2)
        batches = [(inputs, torch.tensor([0, 1]))]
        small = compressor.compress(
            entry.wrap(architectures.build(name)), batches, "layers=50%", method="svd"
        ).model
        _write(
            framework,
            entry.unwrap(small),
            inputs if isinstance(inputs, dict) else {"inputs": inputs},
        )
    cnn = small_models.build("cnn-spatial")
    small_models.factorize(cnn, small_models.MODELS["cnn-spatial"][1])
    _write("torch", cnn, {"inputs": torch.randn(2, 3, 16, 16)})


def _write(framework: str, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    folder = FOLDER / f"{FORMAT_VERSION}-{framework}"
    compressor.save(model, folder)
    with torch.no_grad():
        given = inputs.get("inputs", inputs)
        logits = logits_of(call(model, given))
    save_file({**inputs, "logits": logits}, folder.with_name(f"{folder.name}.safetensors"))


if __name__ == "__main__":
    main()
