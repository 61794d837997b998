import csv
import io

import pytest
from matplotlib.figure import Figure

from compressor.errors import UsageError
from compressor.report.collapse_plots import check_format, draw_comparison, draw_measurement
from compressor.report.measured import comparison_csv, measurement_csv, view_comparison
from compressor.schema import ComparisonReport, LayerChange

from .results import LONG_NAME, MEASURED
from .test_terminal import MEASUREMENT, shown

TRAINED = MEASURED.model_copy(
    update={"nc1_quotient": 0.25, "effective_rank": 7.0, "stationarity": 0.875}
)
COMPARISON = ComparisonReport(
    before=MEASUREMENT.model_copy(update={"accuracy": 0.5}),
    after=MEASUREMENT.model_copy(update={"accuracy": 0.75}),
    layers=(LayerChange(name=MEASURED.name, weight_change=0.125, before=MEASURED, after=TRAINED),),
    agreement=0.625,
    kl=0.03125,
    only_before=tuple(f"block.{index}" for index in range(5)),
    seconds={"measure": 3.0},
)


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_the_csv_of_a_measurement_holds_every_figure():
    (row,) = read(measurement_csv(MEASUREMENT))
    told = MEASURED.model_dump()
    rows, columns = told.pop("shape")
    assert (row.pop("rows"), row.pop("columns")) == (str(rows), str(columns))
    assert set(row) == set(told)
    for key, value in told.items():
        assert row[key] == ("" if value is None else str(value))


def test_the_csv_of_a_comparison_has_both_sides():
    (row,) = read(comparison_csv(COMPARISON))
    assert row["name"] == MEASURED.name
    assert float(row["weight_change"]) == 0.125
    assert float(row["nc1_quotient_after"]) == 0.25
    assert float(row["nc1_quotient_before"]) == MEASURED.nc1_quotient
    assert row["stationarity_before"] == ""
    assert float(row["stationarity_after"]) == 0.875


def test_a_comparison_fits_80_columns_and_counts_what_moved():
    text = shown(view_comparison(COMPARISON))
    assert max(map(len, text.splitlines())) <= 80
    flat = " ".join(text.split())
    assert "Of 1 layers, 1 see inputs that are more collapsed" in flat
    assert "Accuracy 50.00 % → 75.00 %" in flat
    assert "62.50 %, KL 0.0312 nats" in flat
    assert "block.0, block.1, block.2 and 2 more" in flat
    assert "12.5 %" in next(line for line in text.splitlines() if line.startswith(LONG_NAME[:4]))


@pytest.mark.parametrize("draw", [draw_measurement, draw_comparison])
def test_drawings_are_written_in_both_formats(tmp_path, draw, monkeypatch):
    report = COMPARISON if draw is draw_comparison else MEASUREMENT
    labels = []
    kept = Figure.savefig

    def savefig(figure, *words, **named):
        labels.extend(axis.get_ylabel() for axis in figure.axes)
        kept(figure, *words, **named)

    monkeypatch.setattr(Figure, "savefig", savefig)
    draw(report, tmp_path / "a.svg")
    draw(report, tmp_path / "a.png")
    assert (tmp_path / "a.svg").read_text().startswith("<?xml")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    # What no layer has is no panel: the measurement's stationarity, not the comparison's.
    assert ("cos(W, −∇L)" in labels) is (draw is draw_comparison)


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.svg or \.png"):
        check_format(tmp_path / "a.jpeg")
