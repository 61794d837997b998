import io

import pytest
from rich.console import Console

from compressor.report.frontier import (
    frontier_drawing,
    frontier_page,
    frontier_sentence,
    view_sweep,
)
from compressor.schema import LatencyFigures, SpeedFigures
from compressor.sweep.schema import Knee, Sweep, SweepPoint, Within

from .results import DATA, report
from .test_html import HOSTILE, Page

POINTS = ((0.9, 0.92), (0.6, 0.918), (0.4, 0.905), (0.2, 0.7))


def point(method, share, accuracy):
    figures = report().compressed.model_copy(update={"accuracy": accuracy, "bytes": None})
    return SweepPoint(
        method=method,
        budget=f"layers={100 * share:g}%",
        plan=f"plans/{method}-layers-{100 * share:g}.json",
        layer_share=share,
        parameter_share=0.5 + share / 2,
        flops_share=share,
        choice="fisher",
        figures=figures,
        seconds={"plan": 1.0},
        speed=SpeedFigures(
            runtime="eager",
            threads=1,
            input="64",
            batches=(
                LatencyFigures(
                    batch=32,
                    rounds=9,
                    dense=200.0,
                    compressed=200.0 * (0.2 + 0.8 * share),
                    dense_memory=10**8,
                    compressed_memory=int(10**8 * share),
                ),
            ),
        ),
    )


SWEEP = Sweep(
    model="models/minilm",
    framework="transformers",
    model_sha256="ab" * 32,
    seed=0,
    device="cpu",
    command="compressor sweep …",
    created="2026-01-01T00:00:00Z",
    versions={"torch": "2"},
    data=DATA,
    dense=report().dense,
    quality="accuracy",
    points=tuple(
        point(method, share, accuracy - drop)
        for method, drop in (("nc1", 0), ("svd", 0.3))
        for share, accuracy in POINTS
    ),
    knees=(Knee(method="nc1", plan="plans/nc1-layers-40.json"),),
    within=(
        Within(tolerance=0.005, plan="plans/nc1-layers-60.json"),
        Within(tolerance=0.01, plan="plans/nc1-layers-60.json"),
        Within(tolerance=0.02, plan="plans/nc1-layers-40.json"),
    ),
    seconds={"load": 1.0},
    out="frontier",
)


def test_the_sentence_names_the_smallest_models():
    assert frontier_sentence(SWEEP) == (
        "The smallest models by loss of accuracy: 80.0 % of the parameters within 0.5 points, "
        "80.0 % of the parameters within 1.0 points, 70.0 % of the parameters within 2.0 points."
    )
    none = tuple(found.model_copy(update={"plan": None}) for found in SWEEP.within)
    assert "No point" in frontier_sentence(SWEEP.model_copy(update={"within": none}))


def test_the_page_shows_points_marks_and_how_to_take_one():
    page = Page(frontier_page(SWEEP))
    assert page.tags.count("svg") == 1
    assert "script" not in page.tags
    assert "≤ 0.5, ≤ 1" in page.text
    assert "knee, ≤ 2" in page.text
    assert "--plan frontier/plans/nc1-layers-60.json" in page.text
    assert page.text.count("svd layers=") == 4


@pytest.mark.parametrize("field", ["model", "command", "out"])
def test_a_hostile_name_stays_text(field):
    page = Page(frontier_page(SWEEP.model_copy(update={field: HOSTILE})))
    assert not {"script", "img"} & set(page.tags)
    assert HOSTILE in page.text


def test_the_table_fits_80_columns_and_cuts_no_figure():
    stream = io.StringIO()
    Console(file=stream, width=80).print(view_sweep(SWEEP))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if "nc1 layers=40%" in line]
    assert row.split() == [
        *(
            "nc1",
            "layers=40%",
            "70.0",
            "%",
            "40.0",
            "%",
            "52.0",
            "%",
            "90.50",
            "%",
            "−1.7",
            "0.0156",
        ),
        *("knee", "≤2"),
    ]


def test_a_row_with_every_mark_and_the_longest_figures_fits_too():
    point = SWEEP.points[0]
    small = point.figures.model_copy(update={"kl_to_dense": 1.234e-08})
    point = point.model_copy(update={"figures": small, "method": "measured-kl"})
    marks = tuple(found.model_copy(update={"plan": point.plan}) for found in SWEEP.within)
    knees = (Knee(method="measured-kl", plan=point.plan),)
    points = (point, *SWEEP.points[4:])
    wide = SWEEP.model_copy(update={"points": points, "within": marks, "knees": knees})
    stream = io.StringIO()
    Console(file=stream, width=80).print(view_sweep(wide))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = [line for line in lines if "1.23e-08" in line]
    assert row.split()[-2:] == ["knee", "≤0.5,1,2"]
    assert "95.0 %" in row
    assert row.count("…") == 1  # in the name


def test_the_drawing_is_the_same_for_the_same_sweep_and_a_file_of_its_own():
    drawn = frontier_drawing(SWEEP)
    assert drawn == frontier_drawing(SWEEP)
    assert "var(--" not in drawn
    assert "#ffffff" in drawn


def test_without_labels_it_is_agreement():
    bare = report(dense=None, compressed=None, agreement=0.97).compressed
    points = tuple(p.model_copy(update={"figures": bare}) for p in SWEEP.points)
    sweep = SWEEP.model_copy(
        update={"quality": "agreement", "dense": report(dense=None).dense, "points": points}
    )
    text = Page(frontier_page(sweep)).text
    assert "97.00 %" in text
    assert "loss of agreement with the dense model" in text


def test_time_is_drawn_where_every_point_was_timed():
    page = frontier_page(SWEEP)
    assert "time of a forward" in page
    untimed = [point.model_copy(update={"speed": None}) for point in SWEEP.points[:1]]
    older = SWEEP.model_copy(update={"points": (*untimed, *SWEEP.points[1:])})
    assert "time of a forward, %" not in frontier_drawing(older)
    assert frontier_page(older)
