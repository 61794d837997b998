"""Directories that older versions wrote still load, with the logits they had."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.checkpoint.format import FORMAT_VERSION
from compressor.checkpoint.load import apply_, load
from compressor.errors import CheckpointError
from compressor.forward import call, logits_of
from tests.contract.small_models import Cnn

FOLDER = Path(__file__).parents[1] / "format"
DIRECTORIES = sorted(path for path in FOLDER.iterdir() if path.is_dir())


def test_every_version_and_framework_has_a_directory() -> None:
    versions = range(1, FORMAT_VERSION + 1)
    frameworks = ("timm", "torch", "transformers")
    expected = [f"{version}-{framework}" for version in versions for framework in frameworks]
    assert [path.name for path in DIRECTORIES] == expected


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_it_loads_with_the_logits_it_had(directory: Path) -> None:
    stored = load_file(FOLDER / f"{directory.name}.safetensors")
    logits = stored.pop("logits")
    model = load(directory, model=Cnn if directory.name.endswith("-torch") else None)
    with torch.no_grad():
        again = logits_of(call(model, stored.get("inputs", stored)))
    # Another release of torch may order its sums otherwise.
    torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("directory", DIRECTORIES, ids=lambda path: path.name)
def test_a_newer_version_is_refused_with_advice(directory: Path, tmp_path: Path) -> None:
    newer = tmp_path / "newer"
    shutil.copytree(directory, newer)
    config = json.loads((newer / "config.json").read_text())
    block = config.get("quantization_config") or config["lowrank"]
    block["format_version"] = FORMAT_VERSION + 1
    (newer / "config.json").write_text(json.dumps(config))
    model = Cnn()
    before = {name: id(module) for name, module in model.named_modules()}
    advice = rf"format_version {FORMAT_VERSION + 1}; .* pip install --upgrade compressor"
    for call_ in (
        lambda: load(newer, model=Cnn),
        lambda: load(newer),
        lambda: apply_(model, newer),
    ):
        with pytest.raises(CheckpointError, match=advice):
            call_()
    assert {name: id(module) for name, module in model.named_modules()} == before
