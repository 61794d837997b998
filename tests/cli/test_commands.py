"""The commands on the bundled model, as a person calls them."""

import json

import pytest

from compressor.cli import main
from compressor.demo import MODEL
from compressor.report.html import report_page
from compressor.schema import (
    ComparisonReport,
    EvaluationReport,
    ExportReport,
    Inspection,
    MeasurementReport,
    PlanReport,
    Report,
)

VIT = str(MODEL)
DIGITS = ["--data", "sklearn:digits", "--calibration", "120", "--limit", "150", "--device", "cpu"]
QUICK = [*DIGITS, "--no-gradients"]


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    """Return the directory of a compression, what it printed, and its plan."""
    root = tmp_path_factory.mktemp("compressed")
    assert main(["plan", VIT, *QUICK, "--budget", "layers=50%", "--out", f"{root}/plan.json"]) == 0
    out = root / "out"
    words = [VIT, *QUICK, "--plan", f"{root}/plan.json", "--out", str(out), "--quiet"]
    assert main(["compress", *words]) == 0
    return out


def printed(capsys):
    """Return the JSON on stdout, and check that stdout holds nothing else."""
    return json.loads(capsys.readouterr().out)


def test_inspect(capsys):
    assert main(["inspect", VIT, "--json"]) == 0
    inspection = Inspection.model_validate(printed(capsys))
    assert inspection.parameters == 2_712_010
    assert "blocks.0.attn.qkv" in {layer.name for layer in inspection.layers}
    assert "head" in {layer.name for layer in inspection.left_dense}


def test_inspect_for_people(capsys):
    assert main(["inspect", VIT, "--exclude", "blocks.[0-4].*", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "blocks.5.attn.qkv" in out
    assert "blocks.0" not in out.split("left dense")[0]
    assert "more layers" in out


def test_measure(capsys):
    assert main(["measure", VIT, *DIGITS, "--json"]) == 0
    measured = MeasurementReport.model_validate(printed(capsys))
    assert measured.labels == "given"
    assert measured.data.calibration.samples == 120
    quotients = {layer.name: layer.nc1_quotient for layer in measured.layers}
    assert quotients["blocks.5.mlp.fc2"] < quotients["blocks.0.mlp.fc2"]


@pytest.mark.slow
def test_a_compressed_checkpoint_is_compared_with_the_dense_one(compressed, tmp_path, capsys):
    files = [f"{tmp_path}/moved.csv", f"{tmp_path}/moved.svg"]
    words = ["compare", VIT, str(compressed), *DIGITS, "--include", "blocks.[45].*", "--json"]
    words += ["--csv", files[0], "--plot", files[1]]
    assert main([*words, "--stationarity"]) == 0
    found = ComparisonReport.model_validate(printed(capsys))
    ranks = Report.model_validate_json((compressed / "report.json").read_text()).layers
    kept = {layer.name: layer.rank for layer in ranks if layer.rank < layer.full_rank}
    changed = {layer.name: layer for layer in found.layers}
    assert kept.keys() <= changed.keys()
    for name, rank in kept.items():  # measured as the product of its factors
        assert changed[name].after.numerical_rank <= rank < changed[name].before.full_rank
        assert 0 < changed[name].weight_change < 1
    assert all(-1 <= layer.before.stationarity <= 1 for layer in found.layers)
    assert found.before.accuracy > 0.9
    assert 0.5 < found.agreement <= 1
    assert not found.only_before
    header, *lines = (tmp_path / "moved.csv").read_text().splitlines()
    assert header.startswith("name,weight_change,nc1_quotient_before")
    assert len(lines) == len(found.layers)
    assert "<svg" in (tmp_path / "moved.svg").read_text()
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_checkpoints_of_other_architectures_are_not_compared(trained_cnn, capsys):
    words = [*DIGITS, "--checkpoint", str(trained_cnn.model[2])]
    assert main(["compare", trained_cnn.model[0], VIT, *words]) == 2
    assert "share no layer" in capsys.readouterr().err


def test_what_holds_for_both_checkpoints_is_told_once(capsys):
    assert main(["compare", VIT, VIT, *DIGITS, "--include", "blocks.5.*"]) == 0
    for told in capsys.readouterr():
        flat = " ".join(told.split())
        assert flat.count("Test is a stratified, seeded draw of 150 of 600 samples (limit).") == 1


def test_plan_is_written_and_not_overwritten(tmp_path, capsys):
    words = ["plan", VIT, *QUICK, "--method", "svd", "--budget", "layers=40%", "--json"]
    words += ["--out", str(tmp_path / "plan.json")]
    assert main(words) == 0
    plan = PlanReport.model_validate(printed(capsys))
    assert plan.layer_share <= 0.4
    before = (tmp_path / "plan.json").read_text()
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "plan.json").read_text() == before
    assert main([*words, "--overwrite"]) == 0


def test_compress_keeps_to_its_budget_and_reports(compressed):
    report = Report.model_validate_json((compressed / "report.json").read_text())
    assert report.compressed.layer_parameters <= 0.5 * report.dense.layer_parameters
    assert report.compressed.accuracy > report.dense.accuracy - 0.05
    assert report.compressed.bytes < report.dense.bytes
    hashes = {report.data.calibration.sha256, report.data.selection.sha256, report.data.test.sha256}
    assert len(hashes) == 3
    for name in ("model.safetensors", "config.json", "plan.json", "report.html", "README.md"):
        assert (compressed / name).is_file()


def test_the_report_tells_every_class_and_spectrum(compressed):
    report = Report.model_validate_json((compressed / "report.json").read_text())
    for figures in (report.dense, report.compressed):
        assert [found.name for found in figures.per_class] == [str(digit) for digit in range(10)]
        hits = sum(found.samples * found.accuracy for found in figures.per_class)
        assert hits / report.data.test.samples == pytest.approx(figures.accuracy)
    assert all(len(layer.spectrum.ranks) <= 64 for layer in report.layers)
    assert all(layer.spectrum.ranks[-1] == layer.full_rank for layer in report.layers)
    page = (compressed / "report.html").read_text()
    assert page == report_page(report)


def test_evaluate_repeats_the_reported_accuracy(compressed, capsys):
    assert main(["evaluate", str(compressed), *DIGITS, "--json"]) == 0
    evaluation = EvaluationReport.model_validate(printed(capsys))
    report = Report.model_validate_json((compressed / "report.json").read_text())
    assert evaluation.accuracy == report.compressed.accuracy
    assert evaluation.sha256 == report.data.test.sha256
    assert not any("samples that" in note for note in evaluation.notes)


def test_evaluate_says_when_other_samples_of_the_same_data_are_drawn(compressed, capsys):
    other = ["--data", "sklearn:digits", "--limit", "90", "--device", "cpu"]
    assert main(["evaluate", str(compressed), *other, "--json"]) == 0
    evaluation = EvaluationReport.model_validate(printed(capsys))
    assert evaluation.samples == 90
    assert any("not the samples" in note and "--limit" in note for note in evaluation.notes)


def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["demo", "--limit", "100", "--method", "svd", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    report = Report.model_validate(printed(capsys))
    assert report.budget == ("layers=50%",)
    assert report.data.reference == "sklearn:digits"
    assert Report.model_validate_json((tmp_path / "demo-out/report.json").read_text()) == report
    # It may replace its own earlier output, but no directory that was named to it.
    assert main([*words, "--quiet"]) == 0
    assert "report      demo-out/report.json" in capsys.readouterr().out
    assert main([*words, "--out", "demo-out"]) == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("budget", "code", "message"),
    [
        ("layers=0", 2, "layers=0"),
        ("layers=150%", 2, "150%"),
        ("layers=abc", 2, "abc"),
        ("abc", 2, "layers=50%"),
        ("layrs=50%", 2, "Did you mean 'layers'"),
        ("params=1%", 3, "smallest"),
    ],
)
def test_an_impossible_budget_is_refused(budget, code, message, tmp_path, capsys):
    words = ["compress", VIT, *QUICK, "--method", "svd", "--budget", budget]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no/such/model", *QUICK], 2, "no/such/model"),
        ([VIT, "--data", "no/such/data"], 2, "no/such/data"),
        ([VIT, *QUICK, "--method", "whitend"], 2, "Did you mean 'whitened'?"),
        ([VIT, *QUICK, "--exclude", "blocks.9.*"], 2, "blocks.9.*"),
    ],
)
def test_a_wrong_name_leaves_nothing_behind(words, code, message, tmp_path, capsys):
    words = ["compress", *words, "--budget", "layers=50%", "--out", str(tmp_path / "out")]
    assert main(words) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_not_touched(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    words = ["compress", VIT, *QUICK, "--budget", "layers=50%", "--out", str(tmp_path)]
    assert main(words) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_export(compressed, tmp_path, capsys):
    words = ["export", str(compressed), "--to", "dense", "--out", str(tmp_path / "dense")]
    assert main([*words, "--json", "--quiet"]) == 0
    report = ExportReport.model_validate(printed(capsys))
    assert report.difference <= report.tolerance
    assert report.bytes > (compressed / "model.safetensors").stat().st_size
    assert main(["inspect", str(tmp_path / "dense"), "--json"]) == 0
    inspection = Inspection.model_validate(printed(capsys))
    assert inspection.parameters == 2_712_010
    assert main(words) == 2
    assert "a directory is not replaced" in capsys.readouterr().err


def test_export_for_people(compressed, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    assert main(["export", str(compressed), "--to", "safetensors", "--out", str(out)]) == 0
    assert "differ by at most 0 on 4 samples" in capsys.readouterr().out
    assert main(["export", str(compressed), "--to", "onnx", "--out", str(tmp_path / "x")]) == 2
    assert "--out x.onnx" in capsys.readouterr().err
