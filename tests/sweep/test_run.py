"""A sweep gives what `compress` gives, and does nothing twice."""

import json
import shutil

import pytest

from compressor.cli import main
from compressor.demo import MODEL
from compressor.methods.plan import read_plan
from compressor.schema import Report
from compressor.sweep.schema import Sweep

QUICK = (
    *("--data", "sklearn:digits", "--calibration", "80", "--limit", "100"),
    *("--device", "cpu", "--no-gradients", "--quiet", "--json"),
    *("--exclude", "blocks.[0-4].*"),
)
METHODS = ("--method", "nc1", "--method", "svd")
BUDGETS = "layers=50%,layers=20%"


def sweep(out, capsys, *words, budgets=BUDGETS, methods=METHODS):
    code = main(
        ["sweep", str(MODEL), *QUICK, *methods, "--budgets", budgets, "--out", str(out), *words]
    )
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return Sweep.model_validate_json(captured.out)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return the directory of a finished sweep; do not change it."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    words = [*QUICK, *METHODS, "--budgets", BUDGETS, "--out", str(out)]
    assert main(["sweep", str(MODEL), *words]) == 0
    return out


def copied(swept, tmp_path):
    return shutil.copytree(swept, tmp_path / "copy")


def lines(out):
    return (out / "points.jsonl").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(("method", "budget"), [("nc1", "layers=20%"), ("svd", "layers=50%")])
def test_a_point_is_what_compress_gives(method, budget, swept, tmp_path, capsys):
    found = Sweep.model_validate_json((swept / "sweep.json").read_text())
    (point,) = [p for p in found.points if (p.method, p.budget) == (method, budget)]
    capsys.readouterr()
    words = ["compress", str(MODEL), *QUICK]
    own = ["--method", method, "--budget", budget]
    assert main([*words, *own, "--out", str(tmp_path / "one")]) == 0
    report = Report.model_validate_json(capsys.readouterr().out)
    assert report.compressed.model_copy(update={"bytes": None}) == point.figures
    assert report.dense == found.dense
    assert report.data == found.data
    assert (swept / point.plan).read_text() == (tmp_path / "one" / "plan.json").read_text()
    # … and its plan makes the same model again.
    replay = ["--plan", str(swept / point.plan), "--out", str(tmp_path / "two")]
    assert main([*words, *replay]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]


def test_it_writes_everything(swept):
    found = Sweep.model_validate_json((swept / "sweep.json").read_text())
    assert [(p.method, p.budget) for p in found.points] == [
        (method, budget) for method in ("nc1", "svd") for budget in BUDGETS.split(",")
    ]
    assert len(lines(swept)) == 5  # the dense model's line, and one a point
    assert len(list((swept / "plans").iterdir())) == 4
    page = (swept / "sweep.html").read_text()
    for name in ("frontier", "landmarks", "points", "take", "reproduce"):
        assert f'<section id="{name}"' in page
    assert (swept / "sweep.svg").read_text().startswith("<?xml")
    for point in found.points:
        assert point.layer_share <= 0.5
        assert point.flops_share == point.figures.flops / found.dense.flops
        assert point.parameter_share == point.figures.parameters / found.dense.parameters


def test_a_killed_sweep_repeats_no_finished_point(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    kept = lines(swept)[:3]
    (out / "points.jsonl").write_text("\n".join(kept) + '\n{"key": "cut sh')
    again = sweep(out, capsys)
    assert lines(out)[:3] == kept
    whole = [line for line in lines(out) if line.endswith("}")]
    assert len(whole) == 5
    before = Sweep.model_validate_json((swept / "sweep.json").read_text())
    # What was kept is told with the seconds of its own time; what was made is equal but for those.
    assert again.points[:2] == before.points[:2]
    assert [p.figures for p in again.points] == [p.figures for p in before.points]


def test_a_finished_sweep_measures_and_evaluates_nothing(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    again = sweep(out, capsys)
    assert lines(out) == lines(swept)
    assert set(again.seconds) == {"load"}


def test_a_longer_ladder_adds_what_is_new(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    again = sweep(out, capsys, budgets=f"{BUDGETS},layers=30%", methods=METHODS[2:])
    assert lines(out)[:5] == lines(swept)
    assert len(lines(out)) == 6
    assert [point.budget for point in again.points][-1] == "layers=30%"


def test_points_between_take_the_recipe_that_a_neighbour_chose(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    budgets = f"layers=60%,{BUDGETS},layers=10%"
    found = sweep(out, capsys, budgets=budgets, methods=METHODS[:2])
    plans = [read_plan(out / point.plan) for point in found.points]
    assert [bool(plan.selection) for plan in plans] == [False, True, True, True]
    assert plans[0].recipe == plans[1].recipe
    assert plans[0].ranks != plans[1].ranks
    assert 0.59 < found.points[0].layer_share <= 0.6
    words = ["compress", str(MODEL), *QUICK, "--plan", str(out / found.points[0].plan)]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    report = Report.model_validate_json(capsys.readouterr().out)
    assert report.compressed.model_copy(update={"bytes": None}) == found.points[0].figures


def test_other_settings_are_other_points(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    sweep(out, capsys, "--seed", "1", budgets="layers=50%", methods=METHODS[2:])
    keys = [json.loads(line)["key"] for line in lines(out)]
    assert len(keys) == len(set(keys)) == 7


def test_a_point_whose_plan_was_written_over_is_made_again(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    (plan,) = [f for f in (out / "plans").iterdir() if f.name == "svd-layers-20.json"]
    before = plan.read_text()
    words = {"budgets": "layers=20%", "methods": METHODS[2:]}
    sweep(out, capsys, "--seed", "1", **words)
    assert json.loads(plan.read_text())["seed"] == 1
    again = sweep(out, capsys, **words)
    assert again.seed == 0
    assert plan.read_text() == before


def test_a_point_without_its_plan_is_made_again(swept, tmp_path, capsys):
    out = copied(swept, tmp_path)
    (out / "plans" / "svd-layers-50.json").unlink()
    sweep(out, capsys)
    assert (out / "plans" / "svd-layers-50.json").is_file()
    assert len(lines(out)) == 6


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--budgets", "layers=50%,layers=0.01%"], 3, "smallest reachable"),
        (["--budgets", "layrs=50%"], 2, "Did you mean 'layers'"),
        (["--method", "scd"], 2, "Unknown method 'scd'"),
        (["--budget-kind", "volume"], 2, "Unknown budget"),
    ],
)
def test_a_wrong_call_leaves_nothing_behind(words, code, message, tmp_path, capsys):
    assert main(["sweep", str(MODEL), *QUICK, *words, "--out", str(tmp_path / "out")]) == code
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_it_does_not_mix_with_something_else(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["sweep", str(MODEL), *QUICK, "--out", str(tmp_path)]) == 2
    assert "holds no sweep" in capsys.readouterr().err
