"""Save, then load in this and in another process: the logits agree to the last bit."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressor.checkpoint.load import load
from compressor.checkpoint.save import save_directory
from compressor.checkpoint.storage import round_to_storage_
from compressor.forward import call, logits_of
from compressor.models import LoadedModel, describe
from tests.contract.small_models import MODELS, build, factorize

ROOT = Path(__file__).parents[2]

LOAD_ALL = """
import sys
import torch
from compressor.checkpoint.load import load
from compressor.forward import call, logits_of
from tests.contract.small_models import MODELS

for name, directory, inputs, logits in torch.load(sys.argv[1], weights_only=True):
    model = MODELS[name][0] if name.startswith("cnn") else None
    with torch.no_grad():
        again = logits_of(call(load(directory, model=model), inputs))
    difference = float((again - logits).abs().max())
    print(name, difference)
    assert difference == 0.0, name
"""


def inputs_for(name: str, described: LoadedModel) -> object:
    if name.startswith("cnn"):
        return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return described.example_inputs(3, length=12)


def saved(name: str, directory: Path, dtype: torch.dtype) -> tuple[object, torch.Tensor]:
    module = build(name)
    described = describe(module)
    described = dataclasses.replace(
        described, storage_dtypes=dict.fromkeys(described.storage_dtypes, dtype)
    )
    lowrank = factorize(module, MODELS[name][1])
    round_to_storage_(module, described.storage_dtypes)
    inputs = inputs_for(name, described)
    with torch.no_grad():
        logits = logits_of(call(module, inputs))
    save_directory(described, directory, lowrank=lowrank)
    return inputs, logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_reloaded_logits_are_identical(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    inputs, logits = saved(name, tmp_path / "out", dtype)
    again = load(tmp_path / "out", model=MODELS[name][0] if name.startswith("cnn") else None)
    assert not again.training
    with torch.no_grad():
        assert torch.equal(logits_of(call(again, inputs)), logits)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {dtype}


@pytest.mark.parametrize("name", MODELS)
def test_directory_is_smaller_and_says_so(name: str, tmp_path: Path) -> None:
    module = build(name)
    described = describe(module)
    dense = sum(p.numel() for p in module.parameters())
    lowrank = factorize(module, MODELS[name][1])
    size = save_directory(described, tmp_path / "out", lowrank=lowrank)
    assert size == (tmp_path / "out" / "model.safetensors").stat().st_size
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(t.numel() for t in stored.values()) < dense
    assert sum(key.endswith(".down.weight") for key in stored) == len(lowrank.layers)


def test_new_process_loads_all_alike(tmp_path: Path) -> None:
    cases = []
    for name in MODELS:
        inputs, logits = saved(name, tmp_path / name, torch.float32)
        plain = dict(inputs) if isinstance(inputs, dict) else inputs
        cases.append((name, str(tmp_path / name), plain, logits))
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run(
        [sys.executable, "-c", LOAD_ALL, str(tmp_path / "cases.pt")],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:-1] == [f"{name} 0.0" for name in MODELS]


@pytest.mark.parametrize("name", ["bert", "vit", "timm-vit"])
def test_saving_a_reloaded_model_again_changes_nothing(name: str, tmp_path: Path) -> None:
    from compressor.checkpoint.format import find_lowrank, read_config
    from compressor.checkpoint.load import load_saved
    from compressor.models import ModelOptions

    saved(name, tmp_path / "first", torch.float16)
    again = load_saved(tmp_path / "first", ModelOptions())
    block = find_lowrank(read_config(tmp_path / "first"), where="config.json")
    assert block is not None
    save_directory(again, tmp_path / "second", lowrank=block.lowrank)
    first, second = (
        (tmp_path / part / "model.safetensors").read_bytes() for part in ("first", "second")
    )
    assert first == second
    assert read_config(tmp_path / "first") == read_config(tmp_path / "second")


def test_shards_load_like_one_file(tmp_path: Path) -> None:
    for name in ("bert", "timm-vit", "cnn", "cnn-spatial"):
        module = build(name)
        described = describe(module)
        lowrank = factorize(module, MODELS[name][1])
        out = tmp_path / name
        size = save_directory(described, out, lowrank=lowrank, max_shard_size="20KB")
        shards = list(out.glob("*.safetensors"))
        assert len(shards) > 1 or name.startswith("cnn")
        assert size == sum(path.stat().st_size for path in shards)
        again = load(out, model=MODELS[name][0] if name.startswith("cnn") else None)
        inputs = inputs_for(name, described)
        with torch.no_grad():
            assert torch.equal(logits_of(call(again, inputs)), logits_of(call(module, inputs)))
