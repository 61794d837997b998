"""Every architecture compresses to half, runs, and comes back to the last bit in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.checkpoint.format import find_lowrank, read_config
from compressor.forward import call, logits_of
from compressor.methods.measurement import Measurement
from compressor.methods.plan import Plan
from tests.contract.architectures import ARCHITECTURES, CLASSES, build

ROOT = Path(__file__).parents[2]

LOAD_ALL = """
import json, sys
from pathlib import Path
import torch
import compressor
from compressor.forward import call, logits_of
from tests.contract.architectures import ARCHITECTURES

differences = {}
for name, (directory, logits) in torch.load(sys.argv[1], weights_only=True).items():
    entry = ARCHITECTURES[name]
    if name.startswith("transformers-"):  # the ecosystem's own call, by the class in the config
        import transformers
        (named,) = json.loads((Path(directory) / "config.json").read_text())["architectures"]
        model = getattr(transformers, named).from_pretrained(directory, dtype=torch.float32)
    else:
        model = compressor.load(directory)
    with torch.no_grad():
        again = logits_of(call(entry.wrap(model.eval()), entry.inputs(4)))
    assert again.shape == logits.shape, name
    differences[name] = float((again - logits).abs().max())
print(json.dumps(differences))
"""


@dataclass(frozen=True)
class Compressed:
    """One architecture after compression: what was measured, chosen, made and saved."""

    found: Measurement
    plan: Plan
    model: nn.Module
    logits: Tensor
    directory: Path


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Compressed]:
    out = tmp_path_factory.mktemp("architectures")

    @cache
    def compress(name: str) -> Compressed:
        entry = ARCHITECTURES[name]
        dense = entry.wrap(build(name))
        batches = [(entry.inputs(n), torch.arange(n) % CLASSES) for n in (8, 9)]
        held_out = [(entry.inputs(5), torch.arange(5) % CLASSES)]
        found = compressor.measure(dense, batches, selection=held_out, method=entry.method)
        plan = compressor.plan(found, "layers=50%", method=entry.method)
        small = compressor.factorize(dense, plan)
        with torch.no_grad():
            logits = logits_of(call(small, entry.inputs(4)))
        compressor.save(entry.unwrap(small), out / name)
        return Compressed(found, plan, small, logits, out / name)

    return compress


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_keeps_half_of_its_layers_parameters_and_runs(
    name: str, compressed: Callable[[str], Compressed]
) -> None:
    done = compressed(name)
    layers = done.found.candidates.in_forms(done.plan.kinds).layers
    kept = sum(layer.cost(done.plan.ranks[layer.name]) for layer in layers.values())
    dense = done.found.candidates.layer_parameters
    assert 0 < kept <= 0.5 * dense  # few samples span few directions: fewer ranks may do
    assert done.logits.isfinite().all()
    block = find_lowrank(read_config(done.directory), where=name)
    assert block is not None
    lowrank = {layer for layer in layers if done.plan.ranks[layer] <= layers[layer].break_even_rank}
    assert set(block.lowrank.layers) == {layer.removeprefix("inner.") for layer in lowrank}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_matrix_is_a_candidate_or_told_why_not(
    name: str, compressed: Callable[[str], Compressed]
) -> None:
    found = compressed(name).found
    told = {*found.candidates.layers, *found.candidates.left_dense}
    silent = {
        layer
        for layer, module in found.model.named_modules()
        if not isinstance(module, nn.Embedding)
        and any(p.ndim > 1 for n, p in module.named_parameters(recurse=False) if "weight" in n)
    }
    assert not silent - told


def test_a_new_process_loads_them_all_alike(
    compressed: Callable[[str], Compressed], tmp_path: Path
) -> None:
    cases = {}
    for name in ARCHITECTURES:
        done = compressed(name)
        cases[name] = (str(done.directory), done.logits)
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
    assert json.loads(done.stdout) == dict.fromkeys(ARCHITECTURES, 0.0)
