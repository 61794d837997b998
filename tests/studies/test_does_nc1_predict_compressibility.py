import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from examples.does_nc1_predict_compressibility.__main__ import main
from examples.does_nc1_predict_compressibility.analysis import PREDICTORS, against, ratios
from examples.does_nc1_predict_compressibility.correlations import correlation, spearman
from examples.does_nc1_predict_compressibility.layers import Shuffled
from examples.does_nc1_predict_compressibility.networks import ORDER
from examples.does_nc1_predict_compressibility.tables import page

DOCS = Path(__file__).parents[2] / "docs" / "studies" / "does_nc1_predict_compressibility"


def drawn(seed, size=40):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=size)
    return z + rng.normal(size=size), z**3 + rng.normal(size=size), z


def test_rank_correlations_are_scipys():
    x, y, _ = drawn(0)
    assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)
    assert spearman(x, np.ones_like(x)) != spearman(x, y)
    assert np.isnan(spearman(x, np.ones_like(x)))


def test_partial_ones_are_those_of_residuals():
    x, y, z = drawn(1)
    ranks = [rankdata(values) for values in (x, y, z)]
    design = np.stack([np.ones_like(z), ranks[2]], 1)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    assert spearman(x, y, z) == pytest.approx(np.corrcoef(*left)[0, 1])
    assert abs(spearman(x, y, z)) < abs(spearman(x, y))
    assert np.isnan(spearman(x, y, x))


def test_intervals_hold_the_estimate_and_forget_unknown_layers():
    x, y, _ = drawn(2)
    found = correlation(x, y)
    assert found.low < found.rho < found.high
    assert found.sure
    x[3], y[5] = np.nan, np.inf
    assert correlation(x, y).layers == 38
    assert correlation(x[:8], y[:8]) is not None
    assert correlation(x[:6], y[:6]) is None  # of six, two are unknown
    noise = np.random.default_rng(5).normal(size=(2, 30))
    assert not correlation(*noise).sure


def test_shuffling_keeps_every_class_its_size_and_what_predicts_nothing():
    labels = torch.tensor([[1, -100, 2], [3, 3, -100]]), torch.tensor([[5, 6, 7]])
    batches = [({"x": index}, part) for index, part in enumerate(labels)]
    mixed = [part for _, part in Shuffled(batches, 1)]
    assert [part.shape for part in mixed] == [part.shape for part in labels]
    flat, before = (torch.cat([p.flatten() for p in parts]) for parts in (mixed, labels))
    assert torch.equal(flat < 0, before < 0)
    assert torch.equal(flat.sort().values, before.sort().values)
    assert not torch.equal(flat, before)


@pytest.mark.slow
def test_one_command_runs_what_it_has_and_says_what_it_skips(tmp_path, capsys):
    words = ["--out", str(tmp_path), "--samples", "30", "--calibration", "60", "--seeds", "1"]
    words += ["--budgets", "1", "--most-layers", "6", "--only", "digits-vit"]
    main([*words, "--only", "minilm-r52"])
    assert "minilm-r52: skipped, no path to" in capsys.readouterr().err
    (result,) = [json.loads((tmp_path / "digits-vit.json").read_text())]
    assert len(result["layers"]) == 6
    assert all(set(layer["predictors"]) == set(PREDICTORS) for layer in result["layers"])
    assert against(result, "fisher").layers == 6
    assert {one.control for one in ratios([result])} == {False, True}
    for name in ("correlations", "layers", "whole"):
        assert (tmp_path / f"{name}.svg").read_text().startswith("<?xml")
    assert "ViT, digits" in (tmp_path / "tables.md").read_text()
    main(words)
    assert "done before" in capsys.readouterr().err


def test_the_documentation_shows_what_the_command_wrote():
    files = [DOCS / f"{name}.json" for name in ORDER]
    results = [json.loads(file.read_text()) for file in files if file.is_file()]
    assert len(results) >= 5
    assert (DOCS / "tables.md").read_text() == page(results)
    for result in results:
        assert len(result["layers"]) == min(result["candidates"], 60)
