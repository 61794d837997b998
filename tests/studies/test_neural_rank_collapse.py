import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from examples.neural_rank_collapse.__main__ import cells, main, run
from examples.neural_rank_collapse.figures import bound
from examples.neural_rank_collapse.measures import measured, truncated
from examples.neural_rank_collapse.networks import digits, mnist
from examples.neural_rank_collapse.results import FILE, VERSIONS, read
from examples.neural_rank_collapse.tables import page
from examples.neural_rank_collapse.training import Cell, Effort, weights_of

DOCS = Path(__file__).parents[2] / "docs" / "studies" / "neural_rank_collapse"
SHORT = Effort(early=20, steps=60, polish=40)


@pytest.fixture(scope="module")
def images():
    return digits()


@pytest.mark.parametrize("cell", [Cell("mlp", 3e-3, 0, depth=2), Cell("cnn", 3e-3, 0)], ids=str)
def test_the_bounds_hold_whatever_the_network_and_the_decay(images, cell):
    network = cell.build(images).eval()  # untrained: nothing but the algebra can make them hold
    for decay in (1e-3, 1.0, None):
        for layer in measured(network, images, decay).layers:
            assert layer.distances[0] <= bound(layer) * (1 + 1e-6)
            assert layer.distances[1] <= (bound(layer) + layer.bias_term) * (1 + 1e-6)
            assert layer.distances[0] <= layer.distances[1]


def test_the_gradient_is_that_of_the_mean_loss(images):
    network = Cell("cnn", 1e-3, 0).build(images).eval()
    found = measured(network, images, 1e-3)
    network = network.double()
    loss = nn.functional.cross_entropy(network(images.train.double()), images.train_labels)
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    for weight, layer in zip(weights_of(network), found.layers, strict=True):
        residual = weight.grad + 1e-3 * weight.detach()
        assert layer.residual_term == pytest.approx(float(residual.norm()) / 1e-3, rel=1e-6)


def test_training_nears_a_critical_point_and_lowers_the_rank(images):
    early, _, stationary = run(Cell("mlp", 1e-2, 0, depth=2), images, SHORT)
    assert [early.stage, stationary.stage] == ["early", "stationary"]
    before, after = early.network.layers[1], stationary.network.layers[1]
    assert after.cosine > before.cosine
    assert after.effective_rank < before.effective_rank
    assert stationary.network.test_accuracy > 0.9


def test_truncation_is_to_the_nearest_matrix_of_the_rank(images):
    network = Cell("mlp", 1e-3, 0, depth=2).build(images)
    small = truncated(network, ["3"], 5)
    weight = network.get_submodule("3").weight.detach()
    lowered = small.get_submodule("3").weight.detach()
    values = torch.linalg.svdvals(weight)
    assert torch.linalg.matrix_rank(lowered, rtol=1e-5) == 5
    assert float((weight - lowered).norm()) == pytest.approx(float(values[5:].norm()), rel=1e-4)
    assert torch.equal(small.get_submodule("1").weight, network.get_submodule("1").weight)


@pytest.mark.slow
def test_a_run_goes_on_and_is_drawn(images, tmp_path, capsys):
    words = ["--out", str(tmp_path), "--steps", "30", "--polish", "5", "--workers", "1"]
    main([*words, "--only", "1"])
    first = (tmp_path / FILE).read_text()
    assert "MNIST: skipped" in capsys.readouterr().err
    main([*words, "--only", "2"])
    assert (tmp_path / FILE).read_text().startswith(first)
    rows = read(tmp_path / FILE)
    assert [row.cell.decay for row in rows] == [1e-4] * 3 + [3e-4] * 3
    assert {row.network.layers[0].shape for row in rows} == {(64, 64)}
    assert all((tmp_path / f"{name}.svg").stat().st_size > 1000 for name in "abcd")
    assert "MLP, 2 hidden" in (tmp_path / "tables.md").read_text()


def test_the_full_grid_holds_the_short_one():
    assert set(cells(full=False, seed=0)) <= set(cells(full=True, seed=0))


def test_mnist_is_read_from_its_own_files(tmp_path):
    for prefix, count in (("train", 20), ("t10k", 8)):
        pixels = bytes(index % 251 for index in range(count * 784))
        header = struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28)
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels)
        labels = struct.pack(">4Bi", 0, 0, 8, 1, count) + bytes(i % 10 for i in range(count))
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    found = mnist(tmp_path)
    assert found.train.shape == (20, 1, 28, 28)
    assert found.classes == 10
    assert found.train.mean(0).abs().max() < 1e-6
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"no IDX file at all")
    with pytest.raises(SystemExit, match="no IDX file"):
        mnist(tmp_path)


def test_the_documentation_shows_what_the_command_wrote():
    rows = read(DOCS / FILE)
    versions = json.loads((DOCS / VERSIONS).read_text())
    assert (DOCS / "tables.md").read_text() == page(rows, versions)
    assert {(row.cell.arm, row.cell.network) for row in rows} >= {
        ("plain", "mlp"),
        ("AdamW", "mlp"),
        ("BatchNorm", "mlp"),
    }
    for row in rows:
        for layer in row.network.layers:
            assert layer.distances[0] <= bound(layer) * (1 + 1e-4)
