"""``drop=1`` or ``drop=1@macro-f1``: the largest loss of quality, in points, nats or percent.

Ranks alone do not tell it: `compressor.methods.promise` searches the smallest model that keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from compressor.errors import UsageError
from compressor.evaluation.metrics.metric import METRICS, Kind, Metric
from compressor.methods.budget import BUDGETS, Budget
from compressor.methods.subject import Subject
from compressor.tokens import TokenForward

AGREEMENT = "agreement"
"""Share of samples on which both models predict alike: accuracy, the dense model being right."""

DEFAULT = "top-1"

UNITS = {
    "points": ("", "%", "point", "points"),
    "percent": ("", "%"),
    "nats": ("", "nats"),
}
"""How an amount may be written, by the unit of its metric."""


@dataclass(frozen=True)
class Drop:
    """The largest loss of one metric on held-out data."""

    name: str = "drop"
    examples: tuple[str, ...] = ("drop=1", "drop=0.5@macro-f1", "drop=0.02@log-loss")
    units: dict[str, float] = field(
        default_factory=lambda: {"": 1.0, "%": 1.0, "point": 1.0, "points": 1.0, "nats": 1.0}
    )
    shares: bool = False

    def check(self, budget: Budget) -> None:
        """Refuse what is no metric behind the @, and a unit that is not the metric's."""
        metric = metric_of(budget)
        if budget.unit not in UNITS[metric.unit]:
            raise UsageError(
                f"A loss of {budget.at or DEFAULT} is told in {metric.unit}, not in "
                f"{budget.unit!r}: write drop={budget.amount:g}{f'@{budget.at}' * bool(budget.at)}."
            )

    def multiple(self, subject: Subject) -> int:
        """Return 1: any rank will do."""
        del subject
        return 1

    def show(self, amount: float) -> str:
        """Return an amount in the unit of its metric, which stands behind the @."""
        return f"{amount:.6g}"

    def constraint(self, budget: Budget, subject: Subject) -> None:
        """Only running a model tells what it lost; but whether the metric fits is known.

        Raises:
            UsageError: If the metric has no meaning for what the model predicts.
        """
        kind: Kind = "tokens" if isinstance(subject.forward, TokenForward) else "classes"
        metric = metric_of(budget)
        if kind not in metric.of:
            known = ", ".join(
                (*(name for name, member in METRICS.items() if kind in member.of), AGREEMENT)
            )
            raise UsageError(
                f"The budget {budget} asks for {metric.title}, which has no meaning where a model "
                f"predicts {kind}. Available: {known}."
            )


def metric_of(budget: Budget) -> Metric:
    """Return the metric that a ``drop=`` budget is about.

    Raises:
        UsageError: If it is no registered one.
    """
    if budget.at == AGREEMENT:
        return METRICS.get(DEFAULT)
    if budget.at is not None and budget.at not in METRICS.names():
        known = ", ".join((*METRICS.names(), AGREEMENT))
        raise UsageError(
            f"The budget drop={budget.amount:g}@{budget.at} names no quality metric. Available: "
            f"{known}."
        )
    return METRICS.get(budget.at or DEFAULT)


def most(budget: Budget) -> float:
    """Return the largest loss in the metric's own unit: a share, or nats."""
    return budget.amount if metric_of(budget).unit == "nats" else budget.amount / 100


BUDGETS.register("drop")(Drop())
