import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import compressor.demo
from compressor.cli import main
from compressor.data.digits import DigitsSource
from compressor.settings import DataSettings
from tests import language

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def run_script(name, *words, cwd):
    """Run an example as a person would, from another directory."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_plain_cnn_trains_and_fits_its_factory(tmp_path):
    printed = run_script("train_plain_cnn.py", "--epochs", 2, "--out", "cnn.pt", cwd=tmp_path)
    assert float(printed.split("test accuracy ")[1].split()[0]) > 0.5
    spec = importlib.util.spec_from_file_location("plain_cnn", EXAMPLES / "plain_cnn.py")
    factory = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(factory)
    module, transform = factory.build()
    module.load_state_dict(torch.load(tmp_path / "cnn.pt", weights_only=True))
    assert module.eval()(torch.zeros(2, *transform.input_size)).shape == (2, 10)


@pytest.mark.slow
def test_the_vit_script_writes_what_the_demo_carries(tmp_path):
    run_script("train_digits_vit.py", "--epochs", 1, "--out", "vit", cwd=tmp_path)

    def contents(directory):
        with safe_open(directory / "model.safetensors", "pt") as file:
            shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        return json.loads((directory / "config.json").read_text()), shapes

    assert contents(tmp_path / "vit") == contents(compressor.demo.MODEL)


def test_the_bundled_model_is_small_enough():
    assert (compressor.demo.MODEL / "model.safetensors").stat().st_size <= 6_000_000


def test_the_digits_split_is_fixed_and_disjoint():
    splits = DigitsSource().read("sklearn:digits", DataSettings(data="sklearn:digits"))
    again = DigitsSource().read("sklearn:digits", DataSettings(data="sklearn:digits", limit=3))
    assert {name: len(split.samples) for name, split in splits.items()} == {
        "train": 1197,
        "test": 600,
    }
    assert all(splits[name].samples == again[name].samples for name in splits)
    counts = [splits["test"].labels.count(digit) for digit in range(10)]
    assert min(counts) >= 57  # stratified: a tenth of 600 each, as far as the classes allow
    assert not set(splits["train"].samples) & set(splits["test"].samples)


@pytest.mark.slow
def test_the_python_example_runs(tmp_path):
    printed = run_script("python_api.py", "--calibration", 128, cwd=tmp_path)
    assert printed.count("accuracy") == 3
    assert float(printed.split("layers=50%  accuracy ")[1].split()[0]) > 0.8
    assert "largest difference of a logit 0.0e+00" in printed


@pytest.mark.slow
def test_a_budget_is_chosen_by_cross_validation(tmp_path):
    printed = run_script("sklearn_classifier.py", cwd=tmp_path)
    assert "chosen layers=" in printed
    assert float(printed.split("accuracy")[-1].split()[0]) > 0.9


@pytest.mark.slow
def test_the_harness_takes_a_compressed_directory(tmp_path):
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    language.save("llama", tmp_path / "llama")
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(language.text())
    words = ["--data", str(corpus), "--budget", "layers=60%", "--method", "svd", "--quiet"]
    small = str(tmp_path / "small")
    assert main(["compress", str(tmp_path / "llama"), *words, "--out", small]) == 0
    rows = [{"pet": "dog", "answer": 0}, {"pet": "cat", "answer": 1}]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "pets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks" / "pets.yaml").write_text(
        "task: pets\ndataset_path: json\ndataset_kwargs:\n  data_files:\n"
        f"    test: {tmp_path / 'pets.jsonl'}\ntest_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "the {{pet}} sees the"\ndoc_to_choice: ["cat", "dog"]\n'
        "doc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    options = ("--tasks", "pets", "--include", str(tmp_path / "tasks"))
    printed = run_script("lm_eval_harness.py", small, *options, cwd=tmp_path)
    assert 0 <= float(printed.split("pets  acc  ")[1].split()[0]) <= 1
