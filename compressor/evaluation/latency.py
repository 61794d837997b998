"""How long a forward takes: measured in turn, never guessed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compressor.evaluation.runtimes.runtime import RUNTIMES, Timed
from compressor.forward import Forward, Inputs, batch_length

WARM_UP = 2
"""Forwards before anything is counted: memory is touched, kernels are chosen."""

FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Latency:
    """Medians of a dense model and a compressed one, timed in turn.

    Args:
        batch: Samples of the batch.
        rounds: Forwards of each.
        dense: Milliseconds of the dense model's forward.
        compressed: Milliseconds of the compressed one's.
    """

    batch: int
    rounds: int
    dense: float
    compressed: float

    @property
    def share(self) -> float:
        """The compressed model's time over the dense one's."""
        return self.compressed / self.dense


def compare_latency(
    dense: nn.Module,
    compressed: nn.Module,
    inputs: Inputs,
    *,
    forward: Forward,
    runtime: str = "eager",
    rounds: int = 20,
    seconds: float = 4.0,
) -> Latency:
    """Time two models on the same inputs.

    Args:
        dense: The dense model, in eval mode.
        compressed: The compressed one.
        inputs: Inputs of B samples, on the models' device.
        forward: How they are called.
        runtime: Registered runtime that both are run in.
        rounds: Forwards of each, at most.
        seconds: Time after which no further round begins once `FEWEST_ROUNDS` are done.

    Raises:
        ModelError: If the runtime cannot run a model.
        MissingExtraError: If the runtime needs a package that is missing.
    """
    member = RUNTIMES.get(runtime)
    calls = [member.prepare(model, forward, inputs) for model in (dense, compressed)]
    taken = time_in_turn(calls, forward.device, rounds=rounds, seconds=seconds)
    first, second = (1000 * statistics.median(times) for times in taken)
    return Latency(batch_length(inputs), len(taken[0]), first, second)


def model_milliseconds(
    model: nn.Module,
    inputs: Inputs,
    *,
    forward: Forward,
    runtime: str = "eager",
    rounds: int = 11,
    seconds: float = 2.0,
) -> float:
    """Return the median milliseconds of one model's forward; see `compare_latency`."""
    run = RUNTIMES.get(runtime).prepare(model, forward, inputs)
    taken = time_in_turn([run], forward.device, rounds=rounds, seconds=seconds)
    return 1000 * statistics.median(taken[0])


def time_in_turn(
    calls: Sequence[Timed],
    device: torch.device,
    *,
    rounds: int,
    seconds: float,
    fewest: int = FEWEST_ROUNDS,
) -> list[list[float]]:
    """Time calls one after the other, round after round, so that disturbances fall on all alike.

    Args:
        calls: What is timed.
        device: Where they compute; it is waited for.
        rounds: Rounds at most.
        seconds: Time after which no further round begins.
        fewest: Rounds at least.

    Returns:
        Seconds of each call, one list a call.
    """
    taken: list[list[float]] = [[] for _ in calls]
    with torch.inference_mode():
        for run in calls:
            for _ in range(WARM_UP):
                run()
        _wait_for(device)
        started = time.perf_counter()
        for number in range(rounds):
            if number >= fewest and time.perf_counter() - started > seconds:
                break
            for run, times in zip(calls, taken, strict=True):
                before = time.perf_counter()
                run()
                _wait_for(device)
                times.append(time.perf_counter() - before)
    return taken


def one_forward(model: nn.Module, inputs: Inputs, *, forward: Forward) -> float:
    """Return the seconds of one forward, the second of two."""
    taken = time_in_turn(
        [lambda: forward(model, inputs)], forward.device, rounds=1, seconds=0.0, fewest=1
    )
    return taken[0][0]


def _wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was given; the CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
