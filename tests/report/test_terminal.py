import io

import pytest
from rich.console import Console

from compressor.report.terminal import (
    view_evaluation,
    view_inspection,
    view_measurement,
    view_plan,
    view_report,
)
from compressor.schema import (
    EvaluationReport,
    Inspection,
    MeasurementReport,
    PlanReport,
    QualityFigures,
    RecoveryFigures,
    SplitFigures,
)

from .results import DATA, INSPECTED, LEFT_DENSE, LONG_NAME, MEASURED, report

INSPECTION = Inspection(
    model="net",
    framework="timm",
    parameters=50_000_000,
    layer_parameters=37_748_736,
    bytes=None,
    flops=None,
    input="3×224×224",
    layers=(INSPECTED,) * 5,
    left_dense=LEFT_DENSE,
    smallest_layers=0.00041,
    smallest_params=0.2451,
)
MEASUREMENT = MeasurementReport(
    model="net",
    framework="timm",
    seed=0,
    data=DATA,
    labels="clusters",
    versions={},
    layers=(MEASURED,),
    left_dense=LEFT_DENSE,
    seconds={"measure": 3.0},
)
PLAN = PlanReport(
    model="net",
    method="nc1",
    budget=("layers=50%",),
    path="plan.json",
    layer_share=0.499,
    parameter_share=0.75,
    layers=report().layers,
    left_dense=LEFT_DENSE,
    selection=report().selection,
)
EVALUATION = EvaluationReport(
    accuracy=0.91667,
    loss=0.31,
    samples=2568,
    sha256="ab" * 32,
    model="out",
    framework="transformers",
    parameters=22_713_216,
    bytes=36_900_000,
    flops=1_500_000_000,
    seconds=12.0,
)
VIEWS = {
    "report": view_report(report()),
    "plan": view_plan(PLAN),
    "inspection": view_inspection(INSPECTION),
    "measurement": view_measurement(MEASUREMENT),
    "evaluation": view_evaluation(EVALUATION),
}


def shown(view, *, terminal=False, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=terminal, highlight=False).print(view)
    return stream.getvalue()


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_fits_80_columns_and_cuts_no_figure(name):
    lines = shown(VIEWS[name]).splitlines()
    assert max(map(len, lines)) <= 80
    figures = [line.split("  ", 1)[1] for line in lines if line.startswith(LONG_NAME[:4])]
    assert not any("…" in row for row in figures)


@pytest.mark.parametrize("name", VIEWS)
def test_colour_is_for_terminals(name, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in shown(VIEWS[name])
    assert "\x1b[" in shown(VIEWS[name], terminal=True)


def test_the_report_shows_ranks_collapse_and_costs():
    text = shown(VIEWS["report"])
    row = next(line for line in text.splitlines() if "3072×12288" in line)
    assert row.split()[1:] == [
        "3072×12288",
        "1024/3072",
        "42",
        "%",
        "1.2e+04",
        "40.00",
        "%",
        "3.12",
        "%",
    ]
    for words in ("92.20 %", "91.70 %", "45.4 MB", "36.9 MB", "report.json", "1,024 calibration"):
        assert words in text


def test_a_plan_has_no_column_for_what_was_lost():
    layers = tuple(layer.model_copy(update={"energy_lost": None}) for layer in PLAN.layers)
    text = shown(view_plan(PLAN.model_copy(update={"layers": layers})))
    assert "lost" not in text.lower()
    assert "NC1 bound" in text


LESSONS = SplitFigures(samples=4354, sha256="00")


@pytest.mark.parametrize(
    ("known", "taught"),
    [
        ({"data": LESSONS, "labels": True}, "predictions and the labels of 4,354 samples"),
        ({"data": LESSONS, "labels": False}, "the dense model's predictions of 4,354 samples"),
        ({}, "the dense model's predictions;"),  # a report of before these were told
    ],
)
def test_recovery_stands_apart(known, taught):
    without = QualityFigures(accuracy=0.9012, loss=0.4, kl_to_dense=0.0456, agreement=0.95)
    done = RecoveryFigures(
        steps=200,
        best_step=175,
        kl_before=0.05,
        kl_after=0.02,
        without=without,
        **known,
    )
    text = " ".join(shown(view_report(report().model_copy(update={"recovery": done}))).split())
    for words in ("recovered", "without recovery", "90.12 %", "0.0456", "step 175", "0.05 → 0.02"):
        assert words in text
    assert taught in text
    assert "recover" not in shown(VIEWS["report"])


def test_a_layer_kept_dense_says_so():
    row = next(line for line in shown(VIEWS["report"]).splitlines() if "blocks.0.mlp.fc1" in line)
    assert row.split()[1:] == ["3072×12288", "dense", "100", "%", "–", "–", "–"]


def test_names_are_shown_as_they_are_and_not_read_as_markup():
    layer = report().layers[0].model_copy(update={"name": "a[bold]b[/]"})
    assert "a[bold]b[/]" in shown(view_report(report().model_copy(update={"layers": (layer,)})))


def test_inspection_rounds_the_smallest_budget_up_and_limits_its_rows():
    text = shown(view_inspection(INSPECTION, limit=2))
    assert "layers=0.1%, params=24.6%" in text
    assert text.count("3072×12288") == 2
    assert "and 3 more layers" in text


def test_names_that_do_not_fit_lose_what_they_share():
    rows = [
        INSPECTED.model_copy(update={"name": f"bert.encoder.layer.{number}.attention.self.query"})
        for number in (0, 11)
    ]
    text = shown(view_inspection(INSPECTION.model_copy(update={"layers": tuple(rows)})))
    assert "layer in bert.encoder.layer " in text
    assert "\n0.attention.self.query " in text
    assert "\n11.attention.self.query " in text


def test_a_note_is_said_once():
    doubled = report().model_copy(update={"notes": (*DATA.notes, "another")})
    text = shown(view_report(doubled))
    assert text.count("a.png, b.png") == 1
    assert "another" in text


def test_a_measurement_by_clusters_says_so():
    assert "k-means" in shown(VIEWS["measurement"])


def test_a_model_without_labels_has_no_accuracy():
    unlabelled = EVALUATION.model_copy(update={"accuracy": None, "loss": None})
    assert "no accuracy" in shown(view_evaluation(unlabelled))


def test_long_names_stay_recognizable():
    assert LONG_NAME[-10:] in shown(VIEWS["inspection"])
    assert LONG_NAME in shown(VIEWS["inspection"], width=160)
