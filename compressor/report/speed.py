"""What the measured speed comes to, in a sentence (pure)."""

from __future__ import annotations

from compressor.schema import LatencyFigures, LayerTime, SpeedFigures

FASTER = 1.02
"""Ratios nearer to 1 than this are no difference."""

NAMED = 3
"""Layers that a sentence names."""


def speed_sentence(speed: SpeedFigures | None) -> str | None:
    """Say how fast the compressed model is, and where it is not faster, why.

    Returns:
        One or a few sentences; None where nothing was timed.
    """
    if speed is None or not speed.batches:
        return None
    gains = ", ".join(
        f"{gain(found):.2f} times as fast as dense at batch {found.batch}"
        for found in speed.batches
    )
    text = f"It runs {gains} ({speed.runtime}, {speed.threads} thread"
    text += f"{'' if speed.threads == 1 else 's'}, input {speed.input})."
    slow = [found for found in speed.batches if gain(found) < FASTER]
    return f"{text} {_why(slow, speed.layers)}" if slow else text


def _why(slow: list[LatencyFigures], layers: tuple[LayerTime, ...]) -> str:
    """Explain why a model with fewer weights is not faster."""
    where = " and ".join(str(found.batch) for found in slow)
    held = sorted(
        (layer for layer in layers if layer.compressed > layer.dense),
        key=lambda layer: layer.dense - layer.compressed,
    )
    if held:
        names = ", ".join(f"{layer.name} ({layer.compressed / layer.dense:.1f}×)" for layer in held)
        if len(held) > NAMED:
            names = ", ".join(
                f"{layer.name} ({layer.compressed / layer.dense:.1f}×)" for layer in held[:NAMED]
            )
            names += f" and {len(held) - NAMED} more"
        return (
            f"It is not faster at batch {where}: two thin products take longer than one in "
            f"{names}. A latency= budget keeps such layers dense."
        )
    return (
        f"It is not faster at batch {where}: with so little work in a forward, each further "
        "product costs about what it saves. A latency= budget keeps layers dense where that is so."
    )


def gain(found: LatencyFigures) -> float:
    """Return how many times as fast the compressed model is."""
    return found.dense / found.compressed
