"""The cost benchmark compresses, tells ratios, keeps earlier rows, and says what it refuses."""

import json

import pytest
import torch

from benchmarks import cost
from benchmarks.cost_page import STAGES, Row, growth, page
from benchmarks.synthetic import Size, batches, network
from compressor.layers.search import find_candidates


@pytest.mark.slow
def test_the_smallest_run_writes_table_and_ratios(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "QUICK_AXES", {"classes": (1, 10)})
    # In this process: two more of them would take most of the time.
    monkeypatch.setattr(cost, "measured_apart", cost.measured_here)
    assert cost.main(["--quick", "--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "cost.json").read_text())["rows"]}
    assert "one class only" in rows["classes 1"]["error"]
    row = Row(**rows["classes 10"])
    assert set(row.seconds) == set(STAGES)
    assert min(*row.seconds.values(), row.forward_backward, row.svd, row.eigh) > 0
    assert row.parameters == sum(p.numel() for p in network(cost.QUICK).parameters()) + 7 * 33
    assert row.ratios["over_pass"] == pytest.approx(row.total / row.forward_backward)
    assert not row.peaks or set(row.peaks) == set(STAGES)
    text = (tmp_path / "cost.md").read_text()
    assert "| classes 10 |" in text
    assert "classes 1 is refused: DataError: The calibration data holds one class only" in text


def test_rows_of_an_earlier_run_stay_and_are_replaced_by_name(tmp_path, monkeypatch):
    def instead(asked, budget):
        return Row(name=asked["title"], size=asked["size"], error=budget)

    monkeypatch.setattr(cost, "measured_apart", instead)
    cost.main(["--quick", "--axes", "width", "--out", str(tmp_path)])
    cost.main(["--quick", "--axes", "classes", "--budget", "layers=40%", "--out", str(tmp_path)])
    cost.main(["--quick", "--axes", "width", "--budget", "layers=30%", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert {row["name"]: row["error"] for row in rows} == {
        **{f"width {value}": "layers=30%" for value in cost.QUICK_AXES["width"]},
        **{f"classes {value}": "layers=40%" for value in cost.QUICK_AXES["classes"]},
    }


def test_growth_is_the_exponent_of_a_power_law():
    assert growth([(x, 5 * x**1.5) for x in (2, 4, 8, 32)]) == pytest.approx(1.5)


def test_a_page_tells_of_rows_of_other_code():
    def row(width, code):
        name, size = f"width {width}", {"width": width, "depth": 1}
        times = dict.fromkeys(STAGES, 1.0)
        return Row(name, size, 9, 36, times, {}, 1.0, 1.0, 1.0, threads=1, code=code)

    both = page([row(8, "a"), row(16, "b")], "layers=50%")
    assert "several versions" in both
    assert "several versions" not in page([row(8, "a"), row(16, "a")], "")
    assert "on 1 thread," in both


def test_synthetic_networks_hold_what_their_size_says():
    size = Size(width=64, depth=2, tokens=3, classes=5, samples=10, batch=4)
    model = network(size)
    given = batches(size, size.samples, seed=1)
    assert [tuple(inputs.shape) for inputs, _ in given] == [(4, 3, 64), (4, 3, 64), (2, 3, 64)]
    assert torch.cat([labels for _, labels in given]).bincount().tolist() == [2] * 5
    assert model(given[0][0]).shape == (4, 5)
    assert len(find_candidates(model, given[0][0]).layers) == 4 * size.depth
