"""Running several computations to the same points, each waiting there for the others.

A layer that is solved for on what all batches give it must not let one of them pass before the last
has come. So every batch runs as a coroutine of its own (a greenlet, for a model's forward knows
nothing of waiting), always in the same order: sums come out the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from greenlet import getcurrent, greenlet

Action = Callable[[], None]


class Lockstep:
    """Computations that take turns.

    Args:
        count: How many there are.

    Attributes:
        index: Number of the one whose turn it is.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self.index = 0

    def run(self, work: Action) -> None:
        """Call ``work`` once for each computation, and return when all have ended.

        What one of them raises is raised here; the others end where they are.
        """
        running = {index: greenlet(work) for index in range(self._count)}
        while running:
            action: Action | None = None
            for self.index, computation in list(running.items()):
                met = computation.switch()
                if computation.dead:
                    del running[self.index]
                else:
                    action = met
            if action is not None:
                action()

    def meet(self, action: Action) -> None:
        """Wait until all others have come to their meeting; then one action is called for all."""
        parent = getcurrent().parent
        assert parent is not None
        parent.switch(action)


def groups(sizes: Sequence[int], most: int) -> list[slice]:
    """Return consecutive groups whose sizes add up to at most ``most``, each of one at least."""
    found, start, total = [], 0, 0
    for index, size in enumerate(sizes):
        if index > start and total + size > most:
            found.append(slice(start, index))
            start, total = index, 0
        total += size
    return [*found, slice(start, len(sizes))] if sizes else found
