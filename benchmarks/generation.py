"""Tokens a second of a causal model, dense against compressed: reading a prompt, and generating.

python -m benchmarks.generation DENSE COMPRESSED [--prompt 128] [--tokens 32] [--batches 1,8]

Both models are timed in turn, so that whatever else the machine does falls on both alike; figures
are medians.
"""

from __future__ import annotations

import argparse
import inspect
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from compressor.models import load_model
from compressor.settings import ModelSettings


@dataclass(frozen=True)
class Speed:
    """Tokens a second, all sequences of the batch together.

    Args:
        batch: Sequences.
        phase: ``prefill`` reads the prompt; ``decode`` makes one token at a time from the cache.
        dense: Of the dense model.
        compressed: Of the compressed model.
    """

    batch: int
    phase: str
    dense: float
    compressed: float

    @property
    def gain(self) -> float:
        """How many times as fast the compressed model is."""
        return self.compressed / self.dense


def prefill(model: nn.Module, prompt: Tensor) -> float:
    """Return the seconds that one forward over the prompt [B, T] takes, filling the cache."""
    start = time.perf_counter()
    model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - start


def decode(model: nn.Module, prompt: Tensor, tokens: int) -> float:
    """Return the seconds that ``tokens`` greedy steps take after the prompt was read."""
    # transformers 5.24 calls the argument ``cache`` and warns of its older name.
    taken = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in taken else "past_key_values"
    output = model(input_ids=prompt, use_cache=True, logits_to_keep=1)
    cache, chosen = output.past_key_values, output.logits[:, -1:].argmax(-1)
    start = time.perf_counter()
    for _ in range(tokens):
        output = model(input_ids=chosen, use_cache=True, **{name: cache})
        cache, chosen = output.past_key_values, output.logits[:, -1:].argmax(-1)
    return time.perf_counter() - start


def compare(
    dense: nn.Module,
    compressed: nn.Module,
    *,
    vocabulary: int,
    prompt: int,
    tokens: int,
    batches: tuple[int, ...],
    rounds: int = 5,
) -> list[Speed]:
    """Return the speeds of both models at each batch size.

    Args:
        dense: The dense causal model, in eval mode.
        compressed: The factorized one.
        vocabulary: Tokens that prompts are drawn from.
        prompt: Tokens of each prompt.
        tokens: Tokens to generate.
        batches: Batch sizes.
        rounds: Times that each figure is taken, after one that is not counted.
    """
    found = []
    draw = torch.Generator().manual_seed(0)
    for batch in batches:
        ids = torch.randint(0, vocabulary, (batch, prompt), generator=draw)
        phases: dict[str, tuple[Callable[[nn.Module, Tensor], float], int]] = {
            "prefill": (prefill, batch * prompt),
            "decode": (lambda model, given: decode(model, given, tokens), batch * tokens),
        }
        for phase, (timed, count) in phases.items():
            seconds: dict[int, list[float]] = {0: [], 1: []}
            with torch.inference_mode():
                for number in range(rounds + 1):
                    for which, model in enumerate((dense, compressed)):
                        taken = timed(model, ids)
                        if number:
                            seconds[which].append(taken)
            both = [count / statistics.median(seconds[which]) for which in (0, 1)]
            found.append(Speed(batch, phase, *both))
    return found


def main() -> None:
    """Print one JSON line for each batch size and phase."""
    parser = argparse.ArgumentParser(description="Tokens a second, dense against compressed.")
    parser.add_argument("dense")
    parser.add_argument("compressed")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--batches", default="1,8")
    given = parser.parse_args()
    models = [load_model(ModelSettings(model=name)) for name in (given.dense, given.compressed)]
    vocabulary = models[0].architecture["vocab_size"]
    assert isinstance(vocabulary, int)
    for speed in compare(
        models[0].module,
        models[1].module,
        vocabulary=vocabulary,
        prompt=given.prompt,
        tokens=given.tokens,
        batches=tuple(int(part) for part in given.batches.split(",")),
    ):
        print(json.dumps({**asdict(speed), "gain": speed.gain}))


if __name__ == "__main__":
    main()
