"""Which jobs are one task's of an array: told by hand, or by the scheduler's environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from compressor.errors import UsageError

Item = TypeVar("Item")

INDEXES = ("JOB_COMPLETION_INDEX", "AWS_BATCH_JOB_ARRAY_INDEX", "SLURM_ARRAY_TASK_ID")
"""Variables that hold a task's number, as Kubernetes, AWS Batch and Slurm set them."""


@dataclass(frozen=True)
class Shard:
    """One task of an array.

    Args:
        index: Its number, from 0.
        count: Number of tasks; None if nobody tells, and each task then does one job.
    """

    index: int
    count: int | None

    def __str__(self) -> str:
        """Return the shard as a person would write it."""
        return f"{self.index}/{self.count}" if self.count else f"task {self.index}"

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Return what is this task's: every count-th item, or the one of its number."""
        if self.count is None:
            return list(items[self.index : self.index + 1])
        return list(items[self.index :: self.count])


def parse_shard(text: str, environment: Mapping[str, str] = os.environ) -> Shard:
    """Read ``i/n`` (from 0), ``auto``, or ``auto/n`` where the scheduler does not tell n.

    Raises:
        UsageError: If it is none of these, or ``auto`` finds no task of an array.
    """
    match = re.fullmatch(r"(auto|\d+)(?:/(\d+))?", text.strip())
    if match is None or (match[1] != "auto" and match[2] is None):
        raise UsageError(
            f"Cannot read --shard {text!r}. Expected auto, or i/n such as 0/4, the first of four."
        )
    count = None if match[2] is None else int(match[2])
    if match[1] == "auto":
        found = _from_environment(environment)
        shard = Shard(found.index, count or found.count)
    else:
        shard = Shard(int(match[1]), count)
    if shard.count is not None and not 0 <= shard.index < shard.count:
        raise UsageError(
            f"--shard {text}: there is no shard {shard.index} of {shard.count}. They count from 0: "
            f"0/{shard.count} to {max(shard.count - 1, 0)}/{shard.count}."
        )
    return shard


def _from_environment(environment: Mapping[str, str]) -> Shard:
    for name in INDEXES:
        if environment.get(name):
            break
    else:
        raise UsageError(
            f"--shard auto: this is no task of an array; none of {', '.join(INDEXES)} is set. Name "
            "the shard: --shard 0/4."
        )
    index = _number(environment, name)
    if name == "AWS_BATCH_JOB_ARRAY_INDEX" and environment.get("AWS_BATCH_JOB_ARRAY_SIZE"):
        return Shard(index, _number(environment, "AWS_BATCH_JOB_ARRAY_SIZE"))
    if name == "SLURM_ARRAY_TASK_ID" and environment.get("SLURM_ARRAY_TASK_COUNT"):
        # Slurm counts from where it is told to, in steps that it does not tell: --array=1-9:2.
        first, last = (_number(environment, f"SLURM_ARRAY_TASK_{end}") for end in ("MIN", "MAX"))
        count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
        step = (last - first) / (count - 1) if count > 1 else 1
        position = (index - first) / (step or 1)
        if position != int(position):
            raise UsageError(
                f"--shard auto: the array's task numbers ({first} to {last}, {count} of them) are "
                "not evenly spaced. Submit it as --array=0-N."
            )
        return Shard(int(position), count)
    return Shard(index, None)


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except (KeyError, ValueError):
        raise UsageError(
            f"--shard auto: expected a number in the environment variable {name}, found "
            f"{environment.get(name)!r}."
        ) from None
