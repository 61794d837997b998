"""Every export format: written whole, equal outputs at other batch sizes, refusals that help."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import compressor
from compressor.checkpoint.export.exporter import EXPORTERS, Exporter
from compressor.checkpoint.export.run import export_loaded
from compressor.errors import (
    MissingExtraError,
    ModelError,
    OutputExistsError,
    UnknownNameError,
    UsageError,
)
from compressor.forward import Inputs, call, logits_of
from compressor.models import describe
from compressor.saving import lowrank_config
from tests.contract import architectures
from tests.contract.small_models import MODELS, build, factorize

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # of the tracers' own making


def small(name: str) -> nn.Module:
    """Return a factorized model whose layers have a bias where the dense ones had."""
    if name in MODELS:
        module = build(name)
        factorize(module, MODELS[name][1])
        for layer, dense in build(name).named_modules():
            if layer in MODELS[name][1] and dense.bias is None:
                module.get_submodule(layer).bias = None
        return module
    entry = architectures.ARCHITECTURES[name]
    module = architectures.build(name)
    return compressor.compress(
        module, [(entry.inputs(4), torch.arange(4) % 3)], "layers=50%", method="svd"
    ).model


def inputs_of(name: str, samples: int) -> Inputs:
    if name.startswith("cnn"):
        return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return describe(small(name)).example_inputs(samples, length=9)


def path_for(to: str, folder: Path) -> Path:
    return folder / f"out{EXPORTERS.get(to).suffix or ''}"


def available(name: str) -> Exporter:
    exporter = EXPORTERS.get(name)
    for package in exporter.packages:
        pytest.importorskip(package)
    return exporter


@pytest.mark.parametrize("name", ["bert", "timm-efficientnet", "cnn", "cnn-spatial"])
@pytest.mark.parametrize("to", EXPORTERS.names())
def test_written_model_computes_the_same(to: str, name: str, tmp_path: Path) -> None:
    exporter = available(to)
    module = small(name)
    out = path_for(to, tmp_path)
    given = inputs_of(name, 3) if name.startswith("cnn") else None
    report = compressor.export(module, to, out, inputs=given)
    assert report.difference <= report.tolerance
    assert report.samples >= 4
    assert out.is_dir() == (exporter.suffix is None)
    files = list(out.rglob("*")) if out.is_dir() else [out]
    assert report.bytes == sum(file.stat().st_size for file in files)
    from compressor.checkpoint.export.logits import named

    inputs = inputs_of(name, 6)
    with torch.no_grad():
        expected = logits_of(call(module, inputs))
    found = exporter.run(describe(module), out, named(inputs))
    torch.testing.assert_close(found, expected, rtol=0, atol=report.tolerance)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize(
    "name", ["gpt2", "vit", "transformers-albert", "transformers-t5-classifier"]
)
@pytest.mark.parametrize("to", ["dense", "safetensors"])
def test_formats_that_trace_nothing_take_any_architecture(
    to: str, name: str, tmp_path: Path
) -> None:
    given = architectures.ARCHITECTURES[name].inputs(3) if "-" in name else None
    report = compressor.export(small(name), to, path_for(to, tmp_path), inputs=given)
    assert report.difference <= 1e-4


@pytest.mark.parametrize("to", EXPORTERS.names())
def test_nothing_is_kept_of_a_model_that_came_out_wrong(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = available(to)
    run = exporter.run
    monkeypatch.setattr(exporter, "run", lambda *a: run(*a) * 1.01 + 1e-2)
    with pytest.raises(ModelError, match=r"outputs differ .* by .*; expected at most"):
        compressor.export(small("cnn"), to, path_for(to, tmp_path), inputs=inputs_of("cnn", 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", EXPORTERS.names())
def test_output_that_exists_is_refused_before_any_work(to: str, tmp_path: Path) -> None:
    available(to)
    out = path_for(to, tmp_path)
    out.mkdir()
    (out / "mine").touch()
    with pytest.raises(OutputExistsError):
        compressor.export(nn.Linear(2, 2), to, out, overwrite=True)
    assert (out / "mine").exists()


@pytest.mark.parametrize("to", ["onnx", "torch-export", "safetensors"])
def test_a_file_is_named_as_its_format_is(to: str, tmp_path: Path) -> None:
    available(to)
    suffix = EXPORTERS.get(to).suffix
    with pytest.raises(UsageError, match=rf"ends in \{suffix}, found model\.bin.*model\{suffix}"):
        compressor.export(nn.Linear(2, 2), to, tmp_path / "model.bin")


def test_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_text("before")
    module = small("bert")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        compressor.export(module, "safetensors", out)
    assert out.read_text() == "before"
    compressor.export(module, "safetensors", out, overwrite=True)
    assert out.stat().st_size > 100


def test_a_mistyped_format_and_a_missing_extra_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        compressor.export(nn.Linear(2, 2), "onx", tmp_path / "out")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'compressor\[export\]'"):
        compressor.export(nn.Linear(2, 2), "onnx", tmp_path / "out.onnx")


def test_inputs_of_another_form_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="called on input_ids, attention_mask, decoder_input_ids"):
        compressor.export(
            small("bert"), "dense", tmp_path / "out", inputs=architectures.token_pairs(2)
        )
    with pytest.raises(ModelError, match="two or more samples"):
        compressor.export(small("cnn"), "dense", tmp_path / "out", inputs=torch.randn(1, 3, 16, 16))


def test_what_cannot_be_traced_is_refused_in_one_line(tmp_path: Path) -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) if float(x.sum()) > 0 else self.layer(-x)

    with pytest.raises(ModelError, match=r"torch\.export cannot hold Decides") as caught:
        compressor.export(
            Decides().eval(), "torch-export", tmp_path / "a.pt2", inputs=torch.ones(2, 4)
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_is_traced_but_does_not_run_again_is_refused(tmp_path: Path) -> None:
    name = "transformers-t5-classifier"
    given = architectures.ARCHITECTURES[name].inputs(3)
    with pytest.raises(ModelError, match="cannot hold T5ForSequenceClassification"):
        compressor.export(small(name), "torch-export", tmp_path / "t5.pt2", inputs=given)
    assert not list(tmp_path.iterdir())


def test_onnx_stays_as_small_as_the_factors(tmp_path: Path) -> None:
    available("onnx")
    import onnx

    module = small("timm-efficientnet")
    compressor.export(module, "onnx", tmp_path / "out.onnx")
    graph = onnx.load(tmp_path / "out.onnx").graph
    held = sum(torch.Size(tensor.dims).numel() for tensor in graph.initializer)
    assert held <= 1.02 * sum(p.numel() for p in module.parameters())
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_safetensors_header_tells_kinds_and_ranks(tmp_path: Path) -> None:
    module = small("gpt2")
    compressor.export(module, "safetensors", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        told = json.loads(file.metadata()["lowrank"])
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    layers = lowrank_config(module).layers
    assert told == {name: {"kind": e.kind, "rank": e.rank} for name, e in layers.items()}
    assert all(shapes[f"{name}.down.weight"][0] == entry.rank for name, entry in layers.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_stay_so(dtype: torch.dtype, tmp_path: Path) -> None:
    import dataclasses

    described = describe(small("bert"))
    described = dataclasses.replace(
        described, storage_dtypes=dict.fromkeys(described.storage_dtypes, dtype)
    )
    report = export_loaded(described, "dense", tmp_path / "dense")
    with safe_open(tmp_path / "dense" / "model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {dtype}  # noqa: SIM118
    assert 0 < report.difference < report.tolerance


FOREIGN = """
import json, sys, torch
sys.modules["compressor"] = None  # as if it were not installed
import timm
from transformers import AutoModelForSequenceClassification as Auto

found = {}
for name, (directory, inputs) in torch.load(sys.argv[1], weights_only=True).items():
    with torch.no_grad():
        if isinstance(inputs, dict):
            logits = Auto.from_pretrained(directory).eval()(**inputs).logits
        else:
            logits = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()(inputs)
    found[name] = logits.tolist()
print(json.dumps(found))
"""


@pytest.mark.slow
def test_dense_directories_load_without_this_package(tmp_path: Path) -> None:
    cases, expected = {}, {}
    for name in ("bert", "gpt2", "timm-efficientnet"):
        module, inputs = small(name), inputs_of(name, 2)
        compressor.export(module, "dense", tmp_path / name)
        plain = dict(inputs) if isinstance(inputs, dict) else inputs
        cases[name] = (str(tmp_path / name), plain)
        with torch.no_grad():
            expected[name] = logits_of(call(module, inputs))
    torch.save(cases, tmp_path / "cases.pt")
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, str(tmp_path / "cases.pt")],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, logits in json.loads(done.stdout).items():
        torch.testing.assert_close(torch.tensor(logits), expected[name], rtol=0, atol=1e-4)
