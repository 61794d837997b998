"""How many samples fit into memory at once: found out by halving a batch when memory runs out."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from compressor.progress import Progress

T = TypeVar("T")

_MESSAGES = (
    "can't allocate memory",  # torch on a CPU
    "not enough memory",  # the same on Windows
    "out of memory",  # CUDA before torch.OutOfMemoryError, MPS, XPU
    "CUBLAS_STATUS_ALLOC_FAILED",
)


@dataclass
class Room:
    """What a run knows of the memory that its batches have.

    Args:
        most: Samples of a batch at most, from the measuring pass on; None takes what comes.
        part: Samples that evaluations take at once at most; None likewise.
    """

    most: int | None = None
    part: int | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report says of it."""
        found = []
        if self.most is not None:
            found.append(
                f"Memory ran out on larger batches: everything is as with --batch-size {self.most}."
            )
        if self.part is not None:
            found.append(f"Memory ran out on larger batches: {self.part} were evaluated at once.")
        return tuple(found)

    def run(self, work: Callable[[int | None], T], samples: int, progress: Progress) -> T:
        """Do work whose batches hold at most so many samples; again with half when memory runs out.

        Whatever it gathered is dropped with the error: what is returned is what it would have been
        with the smaller batches from its beginning.

        Args:
            work: Is given the largest number of samples in a batch; None leaves them as they are.
            samples: Samples of its largest batch; 1 where none can be halved.
            progress: Told of each halving.
        """
        while True:
            try:
                return work(self.most)
            except Exception as error:
                tried = samples if self.most is None else min(samples, self.most)
                if tried < 2 or not is_out_of_memory(error):
                    raise
            give_back()  # now that the error is gone, which held every frame's tensors
            self.most = tried // 2
            progress.note(
                f"Memory ran out on batches of {tried} samples: beginning again with {self.most}."
            )

    def calls(self, call: Callable[[int, int], T], samples: int, progress: Progress) -> list[T]:
        """Call something on all samples of a batch, on parts of it where the whole does not fit.

        Args:
            call: Is given where a part starts and where it stops.
            samples: Samples of the batch.
            progress: Told of each halving.
        """
        found: list[T] = []
        start = 0
        while start < samples or not found:
            taken = min(samples - start, self.most or samples, self.part or samples)
            try:
                found.append(call(start, start + taken))
                start += taken
                continue
            except Exception as error:
                if taken < 2 or not is_out_of_memory(error):
                    raise
            give_back()
            self.part = taken // 2
            progress.note(f"Memory ran out on {taken} samples at once: going on with {self.part}.")
        return found


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on the CPU or on a device."""
    # torch's own error is told by its name: a command that needs no torch does not import it.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _MESSAGES)


def give_back() -> None:
    """Return freed memory to the system and to the devices."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it
        if trim is not None:
            trim(0)
