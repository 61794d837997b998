"""Large statistics lie on disk, and are the same when they are read."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from compressor.cache import Cache
from compressor.collapse import spill
from compressor.collapse.spill import SpillDirectory, SpilledLayers, spilled
from compressor.collapse.state import state_of
from compressor.methods.factorize import Decompositions
from compressor.methods.recipe import Recipe
from compressor.progress import Silent
from compressor.stages import factorize, measure, plan
from tests import test_embeddings
from tests.collapse.test_token_capture import batches as windows
from tests.disks import full_disk
from tests.methods.measured import batches, measured, trained

CPU = torch.device("cpu")


class Noted(Silent):
    """Remembers what it was told."""

    def __init__(self):
        self.notes = []

    def note(self, message):
        self.notes.append(message)


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(spill, "IN_MEMORY", 0)


def test_what_is_small_stays_in_memory():
    found = measured()
    assert spilled(found.statistics, found.candidates, CPU) is found.statistics


def test_layers_are_read_as_they_were_and_the_directory_goes_with_them(on_disk):
    found = measured()
    there = spilled(found.statistics, found.candidates, CPU)
    assert isinstance(there.layers, SpilledLayers)
    assert spilled(there, found.candidates, CPU) is there
    one, other = state_of(found.statistics), state_of(there)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=0)
    path = there.layers.spill.path
    assert any(path.iterdir())
    del there
    gc.collect()
    assert not path.exists()


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_has_the_statistics_of_its_head(tied, on_disk, monkeypatch):
    model, given = test_embeddings.build(tied=tied), windows()
    options = {"include": ["embeddings"], "selection": given[:1]}
    there = measure(model, given, **options)
    monkeypatch.setattr(spill, "IN_MEMORY", 1 << 30)
    here = measure(model, given, **options)
    assert isinstance(there.layers, SpilledLayers)
    one, other = state_of(here.statistics), state_of(there.statistics)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert plan(there, "layers=60%").ranks == plan(here, "layers=60%").ranks


def test_plan_and_weights_are_those_of_statistics_in_memory(on_disk):
    there, found = measure(trained(), batches()), measured()
    assert isinstance(there.layers, SpilledLayers)
    here = plan(found, "layers=50%")
    again = plan(there, "layers=50%")
    assert again.ranks == here.ranks
    assert again.recipe == here.recipe
    expected = factorize(trained(), here).state_dict()
    for name, tensor in factorize(trained(), again).state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_a_cache_keeps_decompositions_of_statistics_on_disk_too(on_disk, tmp_path, monkeypatch):
    def planned():
        found = measure(trained(), batches(), cache=Cache(tmp_path, {"model": "m"}))
        assert isinstance(found.layers, SpilledLayers)
        return plan(found, "layers=50%")

    first = planned()
    monkeypatch.setattr(Decompositions, "_made", lambda self, name, recipe: pytest.fail(name))
    assert planned().ranks == first.ranks


def test_what_a_name_held_is_still_there_where_a_write_fails():
    there = SpillDirectory(CPU)
    first = torch.arange(5000.0)
    there.write("a", {"x": first})
    read = there.read("a")["x"]
    with full_disk(), pytest.raises(OSError, match=r"part.*File too large"):
        there.write("a", {"x": first + 1})
    assert torch.equal(read, first)
    assert torch.equal(there.read("a")["x"], first)
    assert [path.name for path in there.path.iterdir()] == ["0.safetensors"]
    there.write("a", {"x": read + 1})
    assert torch.equal(there.read("a")["x"], first + 1)


def test_without_room_on_disk_they_stay_in_memory_and_it_is_said(on_disk):
    noted = Noted()
    with full_disk():
        found = measure(trained(), batches(), progress=noted)
    assert isinstance(found.layers, dict)
    assert len(noted.notes) == 1
    assert "File too large" in noted.notes[0]


def test_decompositions_stay_in_memory_where_the_disk_has_filled_up(on_disk):
    found, other = measure(trained(), batches()), measure(trained(), batches())
    assert isinstance(found.layers, SpilledLayers)
    recipe = Recipe(metric="covariance")
    with full_disk():
        kept = {name: found.decompositions.get(name, recipe) for name in found.layers}
    for name, truncation in kept.items():
        assert found.decompositions.get(name, recipe) is truncation
        expected = other.decompositions.get(name, recipe).decomposition
        assert torch.equal(truncation.decomposition.energies, expected.energies)


class Recommender(nn.Module):
    """Scores items by what was looked at before: the table of items is the output layer too."""

    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(40, 12)
        self.mix = nn.Linear(12, 12)
        self.score = nn.Linear(12, 40, bias=False)
        self.score.weight = self.items.weight

    def forward(self, seen):
        return self.score(torch.relu(self.mix(self.items(seen))).mean(1))


def test_a_table_tied_to_the_output_of_a_classifier_is_found_again(on_disk, monkeypatch):
    torch.manual_seed(0)
    model, draw = Recommender().eval(), torch.Generator().manual_seed(0)
    given = [(torch.randint(0, 40, (8, 5), generator=draw), torch.arange(8) % 4) for _ in range(4)]
    options = {"include": ["embeddings"], "classes": 40}
    there = measure(model, given, **options)
    assert isinstance(there.layers, SpilledLayers)
    monkeypatch.setattr(spill, "IN_MEMORY", 1 << 30)
    here = measure(model, given, **options)
    assert "items" in there.layers
    assert plan(there, "layers=60%").ranks == plan(here, "layers=60%").ranks
