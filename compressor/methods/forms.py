"""Which form each convolution takes, channel or spatial: chosen together with its rank.

Losses of both forms are tr(F D Σ Dᵀ) of their own difference D in one metric, and costs are those
of the budgets; so a layer's options are the ranks of all of its forms, and one multiple-choice
knapsack takes form and rank at once. The forms are then settled, and the method shares the budget
between the layers as it would have anyway.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from compressor.methods.allocation import ALLOCATORS, Options, nearest_limits
from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.constraints import Constraints, Floats, weights_within
from compressor.methods.measurement import Measurement
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import layer_options
from compressor.methods.subject import Subject

UNBUDGETED = 0.5
"""Share of the layers' weights that forms are chosen at where only running the model tells what a
budget allows (``drop=``)."""


def chosen_forms(
    measurement: Measurement, subject: Subject, budgets: Sequence[Budget], *, multiple: int
) -> dict[str, str]:
    """Return the kind of every candidate that has several forms.

    A layer that stays dense by this choice takes the form that is better at most of its costs: the
    method may yet factorize it.

    Args:
        measurement: The dense model, measured; its candidates know the other forms.
        subject: What budgets are counted on.
        budgets: What the layers shall keep to.
        multiple: Ranks are multiples of this.
    """
    others = measurement.candidates.folded_forms()
    if not others:
        return {}
    sides = [measurement, measurement.in_forms(others)]
    allowed = [_constraints(side, subject, budgets) for side in sides]
    recipe = _recipe(measurement)
    layers, forms = {}, {}
    for name in measurement.candidates.layers:
        each = [
            layer_options(side, name, recipe, constraints, multiple=multiple)
            for side, constraints in zip(sides, allowed, strict=True)
        ]
        kinds = [side.candidates.layers[name].kind for side in sides]
        layers[name], forms[name] = union(each if name in others else each[:1], kinds)
    limits = np.minimum(*(constraints.limits for constraints in allowed))
    taken = ALLOCATORS.get("knapsack")(layers, _within_reach(layers, limits))
    return {
        name: forms[name][taken[name]] or most_frequent(forms[name][:-1])
        for name in others
        if len(forms[name]) > 1
    }


def union(each: Sequence[Options], kinds: Sequence[str]) -> tuple[Options, list[str]]:
    """Return the options of all forms of a layer that no other option beats, and their kinds.

    Args:
        each: Options of each form, the last of each the dense layer.
        kinds: Kind of each form.

    Returns:
        Options whose ranks are numbers 0, 1 …, and the kind of each; of the last, the dense layer,
        the empty string.
    """
    last = each[0]
    weights = np.concatenate([*(option.weights[:-1] for option in each), last.weights[-1:]])
    costs = np.concatenate([*(option.costs[:, :-1] for option in each), last.costs[:, -1:]], axis=1)
    losses = np.concatenate([*(option.losses[:-1] for option in each), last.losses[-1:]])
    named = [kind for kind, o in zip(kinds, each, strict=False) for _ in o.weights[:-1]]
    named.append("")
    order = np.lexsort((losses, weights))
    order = np.append(order[order != len(named) - 1], len(named) - 1)
    kept: list[int] = []
    for at in order:
        beaten = (costs[:, kept] <= costs[:, at : at + 1]).all(0) & (losses[kept] <= losses[at])
        if at == order[-1] or not beaten.any():
            kept.append(int(at))
    found = Options(np.arange(len(kept)), weights[kept], costs[:, kept], losses[kept])
    return found, [named[at] for at in kept]


def most_frequent(kinds: Sequence[str]) -> str:
    """Return the kind that stands there most often, of equals the first.

    A set of them would be looked through in an order that every process draws anew.
    """
    return Counter(kinds).most_common(1)[0][0]


def _recipe(measurement: Measurement) -> Recipe:
    """Return the recipe whose losses compare best across layers, of what was measured."""
    if measurement.gradients:
        return Recipe(metric="fisher")
    if measurement.statistics is None:
        return Recipe(metric="identity", layer_weight="relative")
    return Recipe(layer_weight="relative")


def _constraints(
    measurement: Measurement, subject: Subject, budgets: Sequence[Budget]
) -> Constraints:
    """Return what the layers may cost in the forms that the measurement has them in."""
    counted = subject.of(measurement.candidates)
    members = [BUDGETS.get(budget.kind).constraint(budget, counted) for budget in budgets]
    found = tuple(member for member in members if member is not None)
    if found:
        return Constraints(found)
    candidates = measurement.candidates
    return weights_within(candidates.layers, UNBUDGETED * candidates.layer_parameters)


def _within_reach(layers: Mapping[str, Options], limits: Floats) -> Floats:
    """Return the limits, raised where no choice of options keeps to them."""
    least = np.sum([option.costs.min(1) for option in layers.values()], axis=0)
    if len(limits) == 1 or (least > limits).any():
        return np.maximum(limits, least) if len(limits) == 1 else nearest_limits(layers, limits)
    return limits
