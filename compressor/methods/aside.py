"""Sums of regressions that wait for more rows, on disk where they are large."""

from __future__ import annotations

import torch

from compressor.collapse.spill import SpillDirectory
from compressor.methods.pair_sums import PairSums
from compressor.progress import Progress

SMALL = 1 << 20
"""Bytes of sums that are not worth a file."""


class Aside:
    """Where sums lie while other layers are solved for.

    Args:
        home: Device that they are taken back to.
        progress: Told once where there is no room on disk; they stay in memory then.
    """

    def __init__(self, home: torch.device, progress: Progress) -> None:
        self._home, self._progress = home, progress
        self._spill: SpillDirectory | None = None
        self._full = False

    def put(self, name: str, sums: PairSums) -> bool:
        """Write the sums of a layer, and return whether they lie here now.

        Those over no rows do not, nor small ones.
        """
        size = sums.gram.upper.nbytes + sums.cross.nbytes
        if self._full or not sums.unit or size < SMALL:
            return False
        try:
            if self._spill is None:
                self._spill = SpillDirectory(self._home)
            self._spill.write(name, sums.state())
        except OSError as error:
            self._full = True
            self._progress.note(
                f"A refit's sums stay in memory, for they cannot be spilled: {error}"
            )
            return False
        return True

    def take(self, name: str) -> PairSums:
        """Return the sums of a layer that were put here."""
        assert self._spill is not None
        return PairSums.from_state(self._spill.read(name))
