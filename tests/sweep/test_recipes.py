"""Which point of a ladder chooses for which others, and when a choice is handed on."""

import pytest

from compressor.methods.plan import Plan
from compressor.methods.recipe import Recipe
from compressor.schema import Choice
from compressor.sweep.recipes import CHOOSING, choosing_points, settled

CHOICE = Choice(label="fisher", kl=0.1, accuracy=0.9, guided=False, chosen=True)


def test_the_middles_of_equal_parts_choose():
    assert choosing_points(10) == (2, 2, 2, 2, 2, 7, 7, 7, 7, 7)
    assert choosing_points(3) == (0, 0, 2)
    assert choosing_points(2) == (0, 1)
    assert choosing_points(1) == (0,)


@pytest.mark.parametrize("points", range(1, 40))
def test_choosers_choose_for_themselves(points):
    found = choosing_points(points)
    assert len(set(found)) == min(points, CHOOSING)
    assert all(found[at] == at for at in found)
    assert list(found) == sorted(found)


def plan(recipe, selection=(CHOICE,), budget="layers=50%"):
    return Plan(method="nc1", budget=(budget,), recipe=recipe, layers={}, selection=selection)


def test_what_was_judged_is_handed_on():
    assert settled(plan(Recipe(metric="fisher")), "layers=40%") == Recipe(metric="fisher")


@pytest.mark.parametrize(
    ("made", "budget"),
    [
        (plan(Recipe(), selection=()), "layers=40%"),
        (plan(Recipe(allocation="measured")), "layers=40%"),
        (plan(Recipe(), budget="latency=60%"), "layers=40%"),
        (plan(Recipe()), "drop=1"),
    ],
)
def test_what_was_not_is_chosen_anew(made, budget):
    assert settled(made, budget) is None
