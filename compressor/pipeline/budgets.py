"""What a plan comes to under the budgets it was made for."""

from __future__ import annotations

from compressor.methods.budget import BUDGETS, parse_budget
from compressor.methods.constraints import Constraints
from compressor.methods.plan import Plan
from compressor.methods.subject import Subject
from compressor.schema import BudgetFigures


def budget_figures(made: Plan, subject: Subject) -> tuple[BudgetFigures, ...]:
    """Return what a plan comes to under each budget it was made for.

    Args:
        made: The plan.
        subject: What budgets are counted on.
    """
    figures = []
    for text in made.budget:
        budget = parse_budget(text)
        kind = BUDGETS.get(budget.kind)
        if budget.kind == "latency":  # judged by what was measured, not by predictions
            figures += [
                BudgetFigures(
                    budget=text,
                    limit=kind.show(pace.limit),
                    reached=kind.show(pace.compressed),
                    dense=kind.show(pace.dense),
                    met=pace.met,
                )
                for pace in made.paces
                if pace.budget == str(budget)
            ]
            continue
        constraint = kind.constraint(budget, subject)
        if constraint is None:
            figures += _promised(text, made)
            continue
        spent = float(Constraints((constraint,)).spent(made.ranks)[0])
        figures.append(
            BudgetFigures(
                budget=text,
                limit=kind.show(constraint.fixed + constraint.limit),
                reached=kind.show(constraint.fixed + spent),
                dense=kind.show(constraint.dense),
                met=spent <= constraint.limit,
            )
        )
    return tuple(figures)


def _promised(text: str, made: Plan) -> list[BudgetFigures]:
    """Return what the chosen model lost of a promised metric, as the search found it."""
    budget = parse_budget(text)
    kept = [trial for trial in made.trials if trial.kept] or list(made.trials)
    chosen = min(kept, key=lambda trial: trial.share, default=None)
    if chosen is None:
        return []  # a plan that was edited, or made by hand
    (loss,) = [loss for loss in chosen.losses if loss.budget == str(budget)]
    unit = "%" if loss.unit == "percent" else loss.unit
    limit = f"{budget.amount:g} {unit} of {loss.metric}"
    if not chosen.kept and not made.unmet:
        return [
            BudgetFigures(
                budget=text,
                limit=limit,
                reached="0, as every layer stays dense",
                dense="0",
                met=True,
            )
        ]
    return [
        BudgetFigures(
            budget=text,
            limit=limit,
            reached=loss.text,
            dense="0",
            met=loss.high <= loss.most + 1e-12,
        )
    ]
