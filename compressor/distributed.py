"""Several processes at work on one job, as torchrun starts them; torch.distributed does the work.

Every process runs the same command on the same model and data. Each calls the model on its own
share of the batches, sums are made over all of them, and from there on all know the same to the
last bit. The first one alone prints and writes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed

from compressor.errors import CompressorError, UsageError


@dataclass(frozen=True)
class Group:
    """The processes of a job, seen from one of them.

    Args:
        rank: This one's number, from 0.
        size: Number of processes; of one alone, every method is free and changes nothing.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def takes(self, index: int) -> bool:
        """Return whether the batch, or layer, number ``index`` is this process's share."""
        return index % self.size == self.rank

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes."""
        if self.size > 1:
            with _explained():
                distributed.all_reduce(tensor)

    def largest(self, number: int) -> int:
        """Return the largest of the numbers that the processes give."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with _explained():
            distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found)

    def rows(self, parts: list[Tensor | int]) -> Tensor:
        """Return the rows of all batches in order, each known to one of the processes.

        Args:
            parts: For each batch its rows [B, D] where this process has them, else their number B.
        """
        known = [part for part in parts if isinstance(part, Tensor)]
        if self.size == 1:
            return torch.cat(known)
        width = self.largest(known[0].shape[1] if known else 0)
        like = known[0] if known else torch.empty(0)
        joined = torch.cat(
            [part if isinstance(part, Tensor) else like.new_zeros(part, width) for part in parts]
        )
        self.sum_(joined)
        return joined

    def told(self, value: Any, *, by: int = 0) -> Any:
        """Return the plain data (what JSON holds) that process ``by`` gives."""
        if self.size == 1:
            return value
        written = json.dumps(value).encode() if self.rank == by else b""
        length = torch.tensor(len(written))
        text = torch.frombuffer(bytearray(written or b"\0"), dtype=torch.uint8)
        with _explained():
            distributed.broadcast(length, by)
            text = text if self.rank == by else torch.empty(int(length), dtype=torch.uint8)
            distributed.broadcast(text, by)
        return json.loads(text.numpy().tobytes())

    def given(self, tensors: dict[str, Tensor] | None, *, by: int = 0) -> dict[str, Tensor] | None:
        """Return the contiguous tensors on the CPU, or None, that process ``by`` gives."""
        if self.size == 1:
            return tensors
        described = None
        if tensors is not None and self.rank == by:
            described = {
                name: [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
                for name, tensor in tensors.items()
            }
        described = self.told(described, by=by)
        if described is None:
            return None
        if tensors is None or self.rank != by:
            tensors = {
                name: torch.empty(shape, dtype=getattr(torch, dtype))
                for name, (dtype, shape) in described.items()
            }
        with _explained():
            for name in described:
                plain = tensors[name]
                # Not every backend knows every type: bytes are bytes to all of them.
                distributed.broadcast(plain.flatten().view(torch.uint8), by)
        return tensors


ALONE = Group()

_current = ALONE


def current() -> Group:
    """Return the processes that `started` joined; this one alone outside of it."""
    return _current


@contextlib.contextmanager
def started(*, shared: bool) -> Iterator[Group]:
    """Join the other processes that torchrun started with this one, where it did.

    Args:
        shared: Whether the command can be shared.

    Raises:
        UsageError: If it cannot, and torchrun started several.
        CompressorError: If the others cannot be reached.
    """
    global _current  # noqa: PLW0603
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "LOCAL_RANK" not in os.environ:
        yield ALONE
        return
    if not shared:
        raise UsageError(
            "This command is not shared between processes. Start it without torchrun; compress, "
            "measure and plan are shared."
        )
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    signal.signal(signal.SIGTERM, _interrupt)  # so that what is half written is removed
    with _explained():
        distributed.init_process_group(backend)
    _current = Group(distributed.get_rank(), size)
    try:
        yield _current
    finally:
        _current = ALONE
        distributed.destroy_process_group()


def shares(costs: Iterable[float], size: int) -> list[int]:
    """Return which of ``size`` processes takes each piece of work, so that all get about alike.

    The dearest pieces are dealt first, each to who has least (Graham 1969, LPT rule).
    """
    given = list(costs)
    spent = [0.0] * size
    owners = [0] * len(given)
    for index in sorted(range(len(given)), key=lambda i: -given[i]):
        owners[index] = min(range(size), key=spent.__getitem__)
        spent[owners[index]] += given[index]
    return owners


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Turn what torch.distributed raises into one error that tells what has happened."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError is one
        raise CompressorError(
            f"Another process of this job has stopped or cannot be reached, so this one stops too: "
            f"nothing was written. The other's own message tells why. ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
