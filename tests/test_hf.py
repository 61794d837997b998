"""transformers loads a saved directory by its usual call once compressor is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from compressor.checkpoint.save import save_directory
from compressor.forward import call, logits_of
from compressor.layers.lowrank import LowRankLinear
from compressor.models import describe
from tests.contract.small_models import MODELS, build, factorize

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    out = tmp_path_factory.mktemp("hf") / "bert"
    module = build("bert")
    model = describe(module)
    save_directory(model, out, lowrank=factorize(module, MODELS["bert"][1]))
    return out, module


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


REGISTER = "from compressor.autoregister import register_with_transformers as register; register()"
QUANTIZERS = "import transformers.quantizers as q"
CHECK = (
    "print('lowrank' in q.auto.AUTO_QUANTIZER_MAPPING, type(q.__loader__).__module__, "
    "q.__spec__.loader is q.__loader__, "
    "any('autoregister' in type(f).__module__ for f in sys.meta_path))"
)
IMPORT = "from transformers import AutoModelForSequenceClassification as Auto"
LOAD = "print(type(Auto.from_pretrained(sys.argv[1]).bert.encoder.layer[0].attention.self.query))"


@pytest.mark.parametrize(
    "order",
    [f"{REGISTER}; {REGISTER}; {QUANTIZERS}", f"{QUANTIZERS}; {REGISTER}; {REGISTER}"],
    ids=["before", "after"],
)
def test_import_order_does_not_matter_and_no_trace_is_left(order: str) -> None:
    done = run(f"import sys; {order}; {CHECK}")
    loader = "_frozen_importlib_external"
    assert done.stdout.split() == ["True", loader, "True", "False"], done.stderr


def test_waiting_imports_neither_torch_nor_transformers() -> None:
    done = run(
        f"import sys; {REGISTER}; "
        "print([m for m in ('torch', 'transformers', 'compressor.hf') if m in sys.modules])"
    )
    assert done.stdout == "[]\n", done.stderr


def test_without_the_package_the_load_raises(bert: tuple[Path, torch.nn.Module]) -> None:
    done = run(f"import sys; {IMPORT}; {LOAD}", str(bert[0]))
    assert done.returncode != 0
    assert "LowRankLinear" not in done.stdout
    assert "RuntimeError" in done.stderr
    assert "mismatch" in done.stderr.lower()


def test_from_pretrained_is_exact_and_an_ordinary_model(
    bert: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    import compressor.hf  # noqa: F401

    directory, module = bert
    inputs = describe(module).example_inputs(2, length=9)
    with torch.no_grad():
        expected = logits_of(call(module, inputs))
    for options in ({}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}):
        again = AutoModelForSequenceClassification.from_pretrained(directory, **options).eval()
        with torch.no_grad():
            assert torch.equal(logits_of(call(again, inputs)), expected)
    again.save_pretrained(tmp_path / "again")
    third = AutoModelForSequenceClassification.from_pretrained(tmp_path / "again").eval()
    with torch.no_grad():
        assert torch.equal(logits_of(call(third, inputs)), expected)
    logits_of(call(third.train(), inputs)).sum().backward()
    layer = third.bert.encoder.layer[0].attention.self.query
    assert isinstance(layer, LowRankLinear)
    assert layer.down.weight.grad is not None
    assert third.half().dtype == torch.float16
    assert (
        AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.bfloat16).dtype
        == torch.bfloat16
    )
