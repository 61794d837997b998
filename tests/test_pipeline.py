"""The whole job through the command line, on small trained models of every framework."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from compressor.cli import main
from compressor.methods.plan import read_plan
from compressor.schema import (
    EvaluationReport,
    Inspection,
    MeasurementReport,
    PlanReport,
    Report,
)
from tests.trained import COLOURS, TOPICS, Case, texts, write_table

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
CASES = {"transformers": "trained_bert", "timm": "trained_vit", "torch": "trained_cnn"}
QUICK = ("--calibration", "60", "--limit", "150", "--device", "cpu")
BUDGET = ("--budget", "layers=30%")

IN_A_NEW_PROCESS = """
import json, sys
from compressor.cli import main
for words in json.loads(sys.argv[1]):
    if main(words):
        sys.exit(1)
"""


class Run(NamedTuple):
    code: int
    out: str
    err: str


class Compressed(NamedTuple):
    framework: str
    case: Case
    out: Path
    report: Report


def run(*words: object) -> Run:
    """Call the program as `main` does, and keep what it prints apart."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Run(code, out.getvalue(), err.getvalue())


def succeed(*words: object) -> str:
    done = run(*words)
    assert done.code == 0, done.err
    return done.out


def weights(directory: Path) -> bytes:
    return (directory / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    """Keep the tables that `datasets` caches out of the user's home."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="module")
def compressions(request, tmp_path_factory) -> Callable[[str], Compressed]:
    """Return a function that gives the compression of a framework's model, done once."""

    @cache
    def compression(framework: str) -> Compressed:
        case = request.getfixturevalue(CASES[framework])
        out = tmp_path_factory.mktemp(framework) / "small"
        printed = succeed("compress", *case.words, *QUICK, *BUDGET, "--out", out, "--json")
        return Compressed(framework, case, out, Report.model_validate_json(printed))

    return compression


@pytest.fixture(scope="module", params=CASES)  # all tests of one framework follow each other
def compressed(request, compressions) -> Compressed:
    """Return a compression of each framework's model."""
    return compressions(request.param)


def test_inspect(compressed):
    inspection = Inspection.model_validate_json(
        succeed("inspect", *compressed.case.model, "--json")
    )
    assert inspection.parameters == compressed.report.dense.parameters
    assert inspection.layer_parameters == compressed.report.dense.layer_parameters
    assert [layer.name for layer in inspection.layers] == [
        layer.name for layer in compressed.report.layers
    ]
    assert all(layer.break_even_rank < layer.full_rank for layer in inspection.layers)


def test_inspect_of_the_result_counts_the_factors(compressed):
    saved = succeed("inspect", compressed.out, *compressed.case.saved, "--json")
    assert Inspection.model_validate_json(saved).parameters == (
        compressed.report.compressed.parameters
    )


def test_measure(compressed):
    measured = MeasurementReport.model_validate_json(
        succeed("measure", *compressed.case.words, *QUICK, "--json")
    )
    assert measured.labels == "given"
    assert measured.data == compressed.report.data
    by_name = {layer.name: layer for layer in compressed.report.layers}
    for layer in measured.layers:
        assert layer.nc1_quotient == pytest.approx(by_name[layer.name].nc1_quotient, rel=1e-6)


def test_the_report_adds_up(compressed):
    report, out = compressed.report, compressed.out
    assert Report.model_validate_json((out / "report.json").read_text()) == report
    assert report.framework == compressed.framework
    assert report.compressed.layer_parameters <= 0.3 * report.dense.layer_parameters
    saved = report.dense.layer_parameters - report.compressed.layer_parameters
    assert report.dense.parameters - report.compressed.parameters <= saved  # biases may come
    assert report.compressed.flops < report.dense.flops
    splits = (report.data.calibration, report.data.selection, report.data.test)
    assert len({split.sha256 for split in splits}) == 3
    assert all(split.samples > 0 for split in splits)
    assert sum(choice.chosen for choice in report.selection) == 1
    assert 0 < report.compressed.kl_to_dense < 1
    assert set(report.seconds) >= {"load", "measure", "plan", "factorize", "evaluate"}


def test_the_file_is_really_smaller(compressed):
    report = compressed.report
    held = sum(
        tensor.numel() for tensor in load_file(compressed.out / "model.safetensors").values()
    )
    size = (compressed.out / "model.safetensors").stat().st_size
    assert report.compressed.bytes == size < 0.75 * report.dense.bytes
    assert held < report.dense.parameters
    for layer in report.layers:
        if layer.rank < layer.full_rank:
            dense = layer.shape[0] * layer.shape[1]
            assert layer.rank * sum(layer.shape) < dense, layer.name


def test_the_same_seed_gives_the_same_bits(compressions, tmp_path):
    first = compressions("torch")
    words = [*first.case.words, *QUICK, *BUDGET, "--out", tmp_path / "again", "--json"]
    again = Report.model_validate_json(succeed("compress", *words))
    assert [layer.rank for layer in again.layers] == [layer.rank for layer in first.report.layers]
    assert weights(tmp_path / "again") == weights(first.out)
    assert again.compressed == first.report.compressed
    assert again.data == first.report.data


def test_a_plan_is_made_again_and_replayed_exactly(compressed, tmp_path):
    words = [*compressed.case.words, *QUICK]
    path = tmp_path / "plan.json"
    planned = PlanReport.model_validate_json(
        succeed("plan", *words, *BUDGET, "--out", path, "--json")
    )
    assert planned.path == str(path)
    assert path.read_text() == (compressed.out / "plan.json").read_text()
    words += ["--plan", path, "--out", tmp_path / "replayed", "--json"]
    replayed = Report.model_validate_json(succeed("compress", *words))
    assert weights(tmp_path / "replayed") == weights(compressed.out)
    assert replayed.compressed == compressed.report.compressed
    assert replayed.data == compressed.report.data


def test_recovery_is_reported_apart_from_the_truncation(compressed, tmp_path):
    words = [*compressed.case.words, *QUICK, "--plan", compressed.out / "plan.json"]
    out = tmp_path / "out"
    report = Report.model_validate_json(
        succeed("compress", *words, "--recover", "12", "--out", out, "--json")
    )
    assert compressed.report.recovery is None
    free, done = compressed.report.compressed, report.recovery
    assert (done.without.accuracy, done.without.kl_to_dense) == (free.accuracy, free.kl_to_dense)
    assert done.steps == 12
    assert done.labels
    assert done.data.samples >= report.data.calibration.samples > 0
    assert report.compressed.parameters == free.parameters
    saved = EvaluationReport.model_validate_json(
        succeed("evaluate", out, *compressed.case.saved, *compressed.case.data, *QUICK, "--json")
    )
    assert saved.loss == report.compressed.loss
    assert (done.best_step == 0) == (weights(out) == weights(compressed.out))
    assert "Without that: accuracy" in (out / "README.md").read_text()


def test_labels_that_do_not_mean_the_models_classes_are_noticed(compressions, tmp_path):
    rows = texts(60, seed=3)
    turned = dict(zip(TOPICS, [*list(TOPICS)[1:], *TOPICS], strict=False))
    write_table(tmp_path / "turned.csv", [(text, turned[topic]) for text, topic in rows])
    model = compressions("transformers").case.model
    found = succeed("evaluate", *model, "--data", tmp_path / "turned.csv", "--json")
    assert "no better than guessing among 3 classes" in found


def test_an_edited_plan_is_followed(compressed, tmp_path):
    plan = json.loads((compressed.out / "plan.json").read_text())
    first, *_, last = plan["layers"]
    plan["layers"][first]["rank"] = 2
    plan["layers"][last]["rank"] = plan["layers"][last]["break_even_rank"] + 1  # stays dense
    path = tmp_path / "edited.json"
    path.write_text(json.dumps(plan))
    words = [*compressed.case.words, *QUICK, "--plan", path, "--out", tmp_path / "out", "--json"]
    report = Report.model_validate_json(succeed("compress", *words))
    ranks = {layer.name: layer.rank for layer in report.layers}
    assert ranks == {name: layer.rank for name, layer in read_plan(path).layers.items()} | {
        last: next(layer.full_rank for layer in report.layers if layer.name == last)
    }
    assert read_plan(tmp_path / "out" / "plan.json") == read_plan(path)
    stored = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert any(key.endswith(f"{first}.down.weight") for key in stored)
    assert not any(key.endswith(f"{last}.down.weight") for key in stored)


def test_a_layer_taken_out_of_a_plan_stays_dense(compressed, tmp_path):
    plan = json.loads((compressed.out / "plan.json").read_text())
    first = next(iter(plan["layers"]))
    del plan["layers"][first]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    words = [*compressed.case.words, *QUICK, "--plan", tmp_path / "plan.json"]
    report = Report.model_validate_json(
        succeed("compress", *words, "--out", tmp_path / "out", "--json")
    )
    kept = next((layer for layer in report.layers if layer.name == first), None)
    assert kept is None or kept.rank == kept.full_rank
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert not any(key.endswith(f"{first}.down.weight") for key in stored)


def test_a_new_process_evaluates_to_the_last_digit(compressions):
    made = [compressions(framework) for framework in CASES]
    calls = [
        ["evaluate", str(each.out), *each.case.saved, *each.case.data, *QUICK, "--json"]
        for each in made
    ]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, json.dumps(calls)],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, printed = [], done.stdout
    while printed := printed.lstrip():
        value, end = json.JSONDecoder().raw_decode(printed)
        found.append((value["accuracy"], value["loss"], value["sha256"]))
        printed = printed[end:]
    assert found == [
        (
            each.report.compressed.accuracy,
            each.report.compressed.loss,
            each.report.data.test.sha256,
        )
        for each in made
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_checkpoint_keeps_its_storage_type(dtype, trained_bert, tmp_path):
    dense = Path(shutil.copytree(trained_bert.model[0], tmp_path / "dense"))
    state = load_file(dense / "model.safetensors")
    cast = {key: value.to(dtype) for key, value in state.items()}
    save_file(cast, dense / "model.safetensors", {"format": "pt"})
    out = tmp_path / "small"
    words = [dense, *trained_bert.data, *QUICK, *BUDGET, "--method", "svd", "--out", out, "--json"]
    report = Report.model_validate_json(succeed("compress", *words))
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {dtype}
    assert report.compressed.bytes < report.dense.bytes
    again = succeed("evaluate", out, *trained_bert.data, *QUICK, "--json")
    evaluated = EvaluationReport.model_validate_json(again)
    assert evaluated.accuracy == report.compressed.accuracy
    assert evaluated.loss == report.compressed.loss


def test_tables_of_every_form_are_the_same_data(trained_bert, tmp_path):
    import datasets

    rows = texts(60, seed=3)
    table = datasets.Dataset.from_dict(
        {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    )
    write_table(tmp_path / "a.csv", rows)
    with (tmp_path / "a.tsv").open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t").writerows([("text", "label"), *rows])
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    with redirect_stderr(io.StringIO()):
        table.to_parquet(tmp_path / "a.parquet")
        table.save_to_disk(tmp_path / "a")
    found = [
        EvaluationReport.model_validate_json(
            succeed("evaluate", *trained_bert.model, "--data", tmp_path / name, "--json", "--quiet")
        )
        for name in ("a.csv", "a.tsv", "a.jsonl", "a.parquet", "a")
    ]
    assert len({(each.accuracy, each.loss, each.sha256, each.samples) for each in found}) == 1


def test_class_folders_with_splits(trained_vit, tmp_path):
    photos = Path(trained_vit.data[1])
    for split, indices in {
        "train": range(90),
        "val": range(90, 120),
        "test": range(120, 150),
    }.items():
        for name in COLOURS:
            (tmp_path / "parted" / split / name).mkdir(parents=True)
        for index in indices:
            name = list(COLOURS)[index % 3]
            shutil.copy(photos / name / f"{index:03}.png", tmp_path / "parted" / split / name)
    words = [*trained_vit.model, "--data", tmp_path / "parted", "--method", "whitened", *BUDGET]
    report = Report.model_validate_json(
        succeed("compress", *words, "--out", tmp_path / "out", "--json")
    )
    assert report.data.calibration.samples == 60  # two thirds of train: the rest may select
    assert report.data.test.samples == 30


def test_data_that_covers_part_of_the_classes_is_compared_over_those(trained_bert, tmp_path):
    some = [(text, label) for text, label in texts(90, seed=4) if label != "weather"]
    write_table(tmp_path / "some.csv", some)
    words = [*trained_bert.model, "--data", tmp_path / "some.csv", "--method", "svd", *BUDGET]
    done = run("compress", *words, "--out", tmp_path / "out", "--json")
    assert done.code == 0, done.err
    report = Report.model_validate_json(done.out)
    assert report.data.classes == 2
    assert any("2 of the model's 3 classes" in note for note in report.notes)
    assert "2 of the model's 3 classes" in done.err


def test_unlabelled_data_is_clustered_and_compared_without_accuracy(trained_bert, tmp_path):
    bare = [(text,) for text, _ in texts(90, seed=5)]
    write_table(tmp_path / "bare.csv", bare, header=("text",))
    data = ["--data", tmp_path / "bare.csv"]
    measured = succeed("measure", *trained_bert.model, *data, "--json")
    assert MeasurementReport.model_validate_json(measured).labels == "clusters"
    words = [*trained_bert.model, *data, *BUDGET, "--out", tmp_path / "out"]
    report = Report.model_validate_json(succeed("compress", *words, "--json"))
    assert report.dense.accuracy is report.compressed.accuracy is None
    assert 0 < report.compressed.agreement <= 1
    assert any("no labels" in note for note in report.notes)
    assert "accuracy" not in json.loads((tmp_path / "out/config.json").read_text())
    succeed("compress", *words, "--overwrite")  # and the table for people has no accuracy either


def test_overwrite_replaces_what_this_tool_wrote(compressed, tmp_path):
    words = ["compress", *compressed.case.words, *QUICK, "--method", "svd", "--out", tmp_path / "o"]
    succeed(*words, "--budget", "layers=80%", "--quiet")
    before = weights(tmp_path / "o")
    assert run(*words, *BUDGET).code == 2
    assert weights(tmp_path / "o") == before
    succeed(*words, *BUDGET, "--overwrite", "--quiet")
    assert len(weights(tmp_path / "o")) < len(before)
    assert [path.name for path in tmp_path.iterdir()] == ["o"]


def test_quiet_prints_only_the_result(compressed):
    done = run("evaluate", *compressed.case.words, *QUICK, "--quiet", "--json")
    assert done.err == ""
    assert json.loads(done.out)["samples"] == compressed.report.data.test.samples


def test_class_names_reach_the_model(trained_bert, tmp_path):
    out = tmp_path / "out"
    succeed(
        "compress", *trained_bert.words, *QUICK, "--method", "svd", *BUDGET, "--out", out, "--quiet"
    )
    config = json.loads((out / "config.json").read_text())
    assert list(config["id2label"].values()) == list(TOPICS)
    assert (out / "tokenizer.json").read_bytes() == (
        Path(trained_bert.model[0]) / "tokenizer.json"
    ).read_bytes()


@pytest.mark.slow
def test_reuters_keeps_its_accuracy(tmp_path):
    model, data = SHARED / "models/minilm-reuters52", SHARED / "data/reuters52"
    if not model.is_dir() or not data.is_dir():
        pytest.skip(f"{model} or {data} is not on this machine")
    words = [model, "--data", data, "--max-length", 64, "--calibration", 104, "--limit", 150]
    out = tmp_path / "out"
    words += ["--device", "cpu", "--method", "whitened", "--budget", "layers=80%"]
    words += ["--exclude", "bert.encoder.layer.[1-4].*"]  # a third of the work tells as much
    report = Report.model_validate_json(succeed("compress", *words, "--out", out, "--json"))
    stored = load_file(out / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.is_floating_point()} == {torch.float16}
    assert report.dense.accuracy > 0.85
    assert report.compressed.accuracy >= report.dense.accuracy - 0.03
    assert report.compressed.bytes < report.dense.bytes


def test_tiny_imagenet_with_efficientnet(tmp_path):
    file = os.environ.get("COMPRESSOR_EFFICIENTNET_LITE0")
    data = SHARED / "data/tiny-imagenet-val"
    if not file or not data.is_dir():
        pytest.skip(f"COMPRESSOR_EFFICIENTNET_LITE0 is not set, or {data} is not on this machine")
    images = ["--data", data, "--calibration", 200, "--limit", 200, "--device", "cpu"]
    model = ["tf_efficientnet_lite0", "--checkpoint", file, "--input-size", 128]
    out = tmp_path / "out"
    words = [*model, *images, "--method", "whitened", "--budget", "layers=80%", "--out", out]
    report = Report.model_validate_json(succeed("compress", *words, "--json"))
    assert report.data.classes == 200
    assert report.dense.accuracy > 0.35
    assert report.compressed.layer_parameters <= 0.8 * report.dense.layer_parameters
    again = EvaluationReport.model_validate_json(succeed("evaluate", out, *images, "--json"))
    assert again.accuracy == report.compressed.accuracy
