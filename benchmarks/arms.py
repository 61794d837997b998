"""What is compared: every registered method, the default without gradients, and the controls.

A control takes the collapse out of NC1 and leaves everything else as it is. It runs on the default
method, and on recipes that NC1 guides without any choice, where nothing can hide what it does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from benchmarks.controls import CONTROLS, UNCHANGED
from compressor.errors import UsageError, did_you_mean
from compressor.methods.budget import granted, parse_budget
from compressor.methods.measurement import Measurement
from compressor.methods.method import METHODS
from compressor.methods.metrics import METRICS, Needs
from compressor.methods.plan import Plan, planned_layers
from compressor.methods.recipe import Recipe
from compressor.methods.sharing import allocate, label
from compressor.stages import plan, subject_of

DEFAULT = "nc1"
PUBLISHED = "compressor.methods.baselines"

GUIDED_RECIPES = (
    Recipe(layer_weight="relative", beta=0.5),
    Recipe(alpha="nc1", layer_weight="relative"),
    Recipe(metric="fisher", layer_weight="guided", beta=0.25),
)
"""Recipes that NC1 has a part in: in the allocation, in the metric, and beside the Fisher."""

Group = Literal["default", "published", "other", "control"]


@dataclass(frozen=True)
class Arm:
    """One column of the comparison.

    Args:
        name: What it is called in results.
        group: What sort of arm it is.
        method: Registered method, or "" for a fixed recipe.
        recipe: The fixed recipe, where there is no method.
        gradients: Whether a method that can do without gradients is given them.
        control: Name of the control that the measurement goes through.
        guided: Name of the arm whose control or unguided counterpart this is.
    """

    name: str
    group: Group
    method: str = ""
    recipe: Recipe | None = None
    gradients: bool = True
    control: str = UNCHANGED
    guided: str = ""

    @property
    def needs(self) -> Needs:
        """What has to be measured for it."""
        if self.recipe is not None:
            return METRICS.get(self.recipe.metric).needs
        return METHODS.get(self.method).needs(gradients=self.gradients)

    def plan(self, measurement: Measurement, budget: str) -> Plan:
        """Return the plan for a budget, from a measurement that went through the control."""
        if self.recipe is None:
            return plan(measurement, budget, method=self.method)
        allowed = granted([parse_budget(budget)], subject_of(measurement))
        ranks = allocate(measurement, self.recipe, allowed.constraints, multiple=1)
        return Plan(
            method=self.name,
            budget=(budget,),
            recipe=self.recipe,
            seed=measurement.seed,
            gradients=measurement.gradients,
            layers=planned_layers(
                measurement.candidates.layers, ranks, measurement.nc1_quotients()
            ),
        ).bound_to(measurement)


def all_arms() -> tuple[Arm, ...]:
    """Return every arm, the default first and the controls last."""
    names = sorted(distinct_methods(), key=lambda name: name != DEFAULT)
    arms = [Arm(name, _group(name), method=name) for name in names]
    arms.insert(1, Arm(f"{DEFAULT}, no gradients", "other", method=DEFAULT, gradients=False))
    for control in CONTROLS:
        arms.append(
            Arm(f"{DEFAULT}, {control}", "control", DEFAULT, control=control, guided=DEFAULT)
        )
    for recipe in GUIDED_RECIPES:
        name = label(recipe)
        unguided = recipe.model_copy(
            update={
                "beta": 0.0,
                "alpha": 1.0,
                "layer_weight": "one" if recipe.layer_weight == "guided" else recipe.layer_weight,
            }
        )
        arms.append(Arm(name, "control", recipe=recipe, guided=name))
        # Recipes may share it; the second one would be the same cell.
        if not any(arm.recipe == unguided for arm in arms):
            arms.append(Arm(label(unguided), "control", recipe=unguided))
        arms += [
            Arm(f"{name}, {control}", "control", recipe=recipe, control=control, guided=name)
            for control in CONTROLS
        ]
    return tuple(arms)


def distinct_methods() -> list[str]:
    """Return the registered methods, of those that are the same under two names the first."""
    found: dict[object, str] = {}
    for name, member in METHODS.items():
        recipe = getattr(member, "recipe", None)
        same = name if recipe is None else (type(member), recipe)
        found.setdefault(same, name)
    return list(found.values())


def chosen_arms(patterns: Iterable[str]) -> tuple[Arm, ...]:
    """Return the arms whose names match shell-style patterns, in the patterns' order.

    Raises:
        UsageError: If a pattern matches none.
    """
    arms = all_arms()
    found: dict[str, Arm] = {}
    for pattern in patterns:
        matching = {arm.name: arm for arm in arms if fnmatchcase(arm.name, pattern)}
        if not matching:
            raise UsageError(
                f"--methods {pattern!r} matches no method."
                f"{did_you_mean(pattern, [arm.name for arm in arms])}"
            )
        found |= {name: arm for name, arm in matching.items() if name not in found}
    return tuple(found.values()) or arms


def _group(method: str) -> Group:
    if method == DEFAULT:
        return "default"
    return "published" if type(METHODS.get(method)).__module__.startswith(PUBLISHED) else "other"
