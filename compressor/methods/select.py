"""Trying candidates on held-out data and keeping the best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from heapq import heapify, heappop, heappush
from typing import Any

from compressor.methods.constraints import Constraints
from compressor.methods.judging import SHARES
from compressor.methods.measurement import Measurement
from compressor.methods.method import Decision
from compressor.methods.recipe import Recipe
from compressor.methods.refit import RIDGE
from compressor.methods.sharing import allocate, label
from compressor.schema import Choice


class Trials:
    """Candidates tried on the selection data, of which the best is kept.

    Args:
        measurement: With selection data.
    """

    def __init__(self, measurement: Measurement) -> None:
        self._measurement = measurement
        self._tried: list[tuple[Choice, Decision]] = []
        self._begun: list[tuple[float, Decision]] = []

    def begin(self, recipe: Recipe, constraints: Constraints, *, multiple: int) -> None:
        """Take a recipe up with the ranks that it gives, unless it was before; `settle` judges."""
        known = [label(decision.recipe) for _, decision in (*self._tried, *self._begun)]
        if label(recipe) in known:
            return
        ranks = allocate(self._measurement, recipe, constraints, multiple=multiple)
        least = self._measurement.least_divergence(ranks, recipe)
        self._begun.append((least, Decision(ranks, recipe)))

    def settle(self) -> None:
        """Judge all that were taken up: always the most promising one on some more samples.

        Most others have lost by the time that one has been seen on all.
        """
        start, order = len(self._tried), [label(decision.recipe) for _, decision in self._begun]
        waiting = [(least, 0, place) for place, (least, _) in enumerate(self._begun)]
        heapify(waiting)
        while waiting:
            least, step, place = heappop(waiting)
            decision = self._begun[place][1]
            ranks, recipe = decision.ranks, decision.recipe
            limit = self._limit(recipe)
            if step + 1 < len(SHARES) and (limit is None or least < limit):
                share = SHARES[step + 1]
                least = self._measurement.least_divergence(ranks, recipe, share=share)
                heappush(waiting, (least, step + 1, place))
            else:
                self.judge(ranks, recipe)
        self._begun.clear()
        self._tried[start:] = sorted(self._tried[start:], key=lambda one: order.index(one[0].label))

    def begin_weighted(
        self, weights: Mapping[str, Any], constraints: Constraints, *, multiple: int
    ) -> None:
        """Take the best metric so far up with other weights of the layers.

        Args:
            weights: Fields of the recipe that say how the budget is shared.
            constraints: What the layers may cost together.
            multiple: Ranks are multiples of this.
        """
        metric = Recipe(metric=self.best().recipe.metric)
        self.begin(metric.model_copy(update=dict(weights)), constraints, multiple=multiple)

    def add_refitted(self) -> None:
        """Try the best so far with its factors refitted in sequence."""
        best = self.best()
        refitted = best.recipe.model_copy(update={"refit": RIDGE})
        self.judge(best.ranks, refitted, made_from=label(best.recipe))

    def judge(self, ranks: dict[str, int], recipe: Recipe, *, made_from: str | None = None) -> None:
        """Factorize and judge a candidate, and tell which other one it was made from.

        What cannot be the best of its kind is not judged on all of the data: the best of the guided
        and of the unguided ones are told with their KL, for they are compared.
        """
        limit = self._limit(recipe, all_kinds=made_from is not None)
        found, model = self._measurement.judged(ranks, recipe, limit=limit)
        choice = Choice(
            label=label(found.recipe),
            kl=found.kl,
            accuracy=found.accuracy,
            guided=found.recipe.guided,
            chosen=False,
            made_from=made_from,
            lower_bound=found.lower_bound,
        )
        if model is not None and all(choice.kl < other.kl for other, _ in self._tried):
            self._measurement.keep(ranks, found.recipe, model)
        self._tried.append((choice, Decision(ranks, found.recipe)))

    def _limit(self, recipe: Recipe, *, all_kinds: bool = False) -> float | None:
        """Return the KL that the best of a recipe's kind has so far; None before any."""
        rivals = (c.kl for c, _ in self._tried if all_kinds or c.guided == recipe.guided)
        return min(rivals, default=None)

    def best(self) -> Decision:
        """Return the best so far."""
        return self._tried[self._index()][1]

    def decision(self) -> Decision:
        """Return the best, with all that were tried."""
        best = self._index()
        selection = tuple(
            choice.model_copy(update={"chosen": index == best})
            for index, (choice, _) in enumerate(self._tried)
        )
        return replace(self._tried[best][1], selection=selection)

    def _index(self) -> int:
        choices = [choice for choice, _ in self._tried]
        return min(range(len(choices)), key=lambda i: (choices[i].kl, -(choices[i].accuracy or 0)))
