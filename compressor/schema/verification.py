"""What `verify` prints."""

from __future__ import annotations

from typing import Literal

from compressor.schema.strict import Strict


class Check(Strict):
    """One thing that `verify` looked at.

    Args:
        name: ``integrity``, ``files``, ``versions``, ``ranks``, ``plan`` or ``outputs``.
        outcome: ``skipped`` where there is nothing to compare with; the detail says why.
        detail: What was found.
    """

    name: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str


class VerificationReport(Strict):
    """What `verify` prints.

    Args:
        directory: What was verified.
        framework: Whose model it is.
        layers: Number of factorized layers.
        integrity_sha256: Hash of integrity.json, to be compared with one that is trusted.
        ok: Whether no check failed.
        checks: Every check.
        seconds: Time it took.
    """

    directory: str
    framework: str
    layers: int
    integrity_sha256: str | None
    ok: bool
    checks: tuple[Check, ...]
    seconds: float
