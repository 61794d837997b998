"""``latency=``: bringing a model to a time that was measured, not predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compressor.evaluation.latency import compare_latency
from compressor.methods.budget import Budget
from compressor.methods.budgets.latency import batch_of
from compressor.methods.constraints import Constraints
from compressor.methods.measurement import Measurement
from compressor.methods.method import Decision, Method
from compressor.methods.promise import decide_again
from compressor.methods.subject import Subject
from compressor.progress import Progress
from compressor.schema import Pace

ATTEMPTS = 4
"""Models that are timed, at most."""

MARGIN = 0.97
"""Where the prediction was wrong, the next model aims at this share of the limit."""


@dataclass(frozen=True)
class Paced:
    """What the attempts came to.

    Args:
        decision: Ranks and recipe.
        paces: The time of that model under each budget.
        unmet: A sentence for each budget that no attempt kept to.
    """

    decision: Decision
    paces: tuple[Pace, ...]
    unmet: tuple[str, ...] = ()


def keep_pace(
    measurement: Measurement,
    method: Method,
    budgets: Sequence[Budget],
    decision: Decision,
    constraints: Constraints,
    *,
    subject: Subject,
    multiple: int,
    adjust: bool,
    progress: Progress,
) -> Paced:
    """Time the decided model beside the dense one, and decide anew where it is too slow.

    Args:
        measurement: The dense model, measured.
        method: How ranks are chosen.
        budgets: Budgets of the kind ``latency``.
        decision: What was decided on predictions.
        constraints: What it was decided within.
        subject: What budgets are counted on.
        multiple: Ranks are multiples of this.
        adjust: Whether other ranks may be decided on; not where a ``drop=`` budget chose these.
        progress: Told of each attempt.
    """
    tried: list[Paced] = []
    for attempt in range(ATTEMPTS):
        model, settled = measurement.factorized(decision.ranks, decision.recipe)
        decision = replace(decision, recipe=settled)
        measurement.keep(decision.ranks, decision.recipe, model)
        paces = []
        for budget in budgets:
            timed = compare_latency(
                measurement.model,
                model,
                subject.inputs(batch_of(budget)),
                forward=measurement.forward,
                runtime=subject.runtime,
            )
            limit = budget.amount * timed.dense if budget.relative else budget.amount
            paces.append(
                Pace(
                    budget=str(budget), dense=timed.dense, compressed=timed.compressed, limit=limit
                )
            )
            progress.note(
                f"{budget}: {timed.compressed:.3g} ms of {limit:.3g} allowed, dense "
                f"{timed.dense:.3g} ms."
            )
        tried.append(Paced(decision, tuple(paces)))
        if all(pace.met for pace in paces):
            return tried[-1]
        if not adjust or attempt == ATTEMPTS - 1:
            break
        tightened = _tightened(constraints, decision, paces)
        if tightened is None:
            break
        constraints = tightened
        decision = replace(
            decide_again(
                method,
                measurement,
                constraints,
                decision.recipe,
                multiple=multiple,
                progress=progress,
            ),
            selection=decision.selection,
        )
    nearest = min(tried, key=_excess)
    unmet = tuple(
        f"The budget {pace.budget} cannot be met: the nearest of the models tried takes "
        f"{pace.compressed:.3g} ms of {pace.limit:.3g} allowed ({pace.dense:.3g} dense)."
        for pace in nearest.paces
        if not pace.met
    )
    return replace(nearest, unmet=unmet)


def _excess(paced: Paced) -> float:
    """Return the largest ratio of time to limit."""
    return max(pace.compressed / pace.limit for pace in paced.paces)


def _tightened(
    constraints: Constraints, decision: Decision, paces: Sequence[Pace]
) -> Constraints | None:
    """Return limits lowered by how far predictions were off; None where ranks cannot follow."""
    by_name = {pace.budget: pace for pace in paces}
    members = []
    for member in constraints.members:
        pace = by_name.get(member.name)
        if pace is None or pace.met:
            members.append(member)
            continue
        spent = float(Constraints((member,)).spent(decision.ranks)[0])
        predicted = member.fixed + spent
        limit = predicted * MARGIN * pace.limit / pace.compressed - member.fixed
        least = sum(float(costs[1:].min()) for costs in member.costs.values())
        if limit < least:
            return None
        members.append(replace(member, limit=min(limit, spent * 0.999)))
    return Constraints(tuple(members))
