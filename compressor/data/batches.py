"""Splits that batch texts by length and decode images when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.data.labelled import Samples
from compressor.data.preprocessing import decode, normalize
from compressor.forward import Batch
from compressor.models.source import ImageTransform

# Batches come in a fixed but mixed order, so that the first few of them already look like the
# whole split and not like its shortest texts or its first class folders.
_ORDER_SEED = 0


@dataclass(frozen=True)
class Padding:
    """How token sequences of a batch are brought to one length.

    Args:
        values: For each input that varies with the tokens, what fills it up.
        side: Where padding goes.
    """

    values: Mapping[str, int]
    side: str = "right"


@dataclass(frozen=True)
class TextSplit:
    """Tokenized texts in batches of like length, each padded to its longest text only.

    Texts of like length are often of like class, which is no good to learn from: mixed texts stay
    in the order in which they come.

    Args:
        encodings: For each text, input_ids [T] and whatever else the tokenizer gives per token.
        targets: Labels [N] (int64), in the order of the data, or None.
        padding: How batches are padded.
        sha256: Hash of texts and labels.
        batch_size: Texts a batch.
        mixed: Keep the order of the texts.
    """

    encodings: Sequence[Mapping[str, NDArray[np.int64]]]
    targets: Tensor | None
    padding: Padding
    sha256: str
    batch_size: int
    mixed: bool = False

    def __len__(self) -> int:
        return len(self.encodings)

    @property
    def labels(self) -> Tensor | None:
        """Labels [N] in the order in which iterating yields the texts."""
        if self.targets is None:
            return None
        return self.targets[torch.tensor([i for batch in self._order() for i in batch])]

    def __iter__(self) -> Iterator[Batch]:
        """Yield ({input_ids [B, T], attention_mask [B, T], …}, labels [B])."""
        for batch in self._order():
            targets = None if self.targets is None else self.targets[torch.tensor(batch)]
            yield self._padded([self.encodings[index] for index in batch]), targets

    def _order(self) -> list[list[int]]:
        ordered = list(range(len(self)))
        starts = np.arange(0, len(ordered), self.batch_size)
        if not self.mixed:
            ordered.sort(key=lambda index: len(self.encodings[index]["input_ids"]))  # stable
            starts = np.random.default_rng(_ORDER_SEED).permutation(starts)
        return [ordered[start : start + self.batch_size] for start in starts]

    def _padded(self, encodings: list[Mapping[str, NDArray[np.int64]]]) -> dict[str, Tensor]:
        longest = max(len(encoding["input_ids"]) for encoding in encodings)
        inputs = {
            name: torch.full((len(encodings), longest), fill, dtype=torch.int64)
            for name, fill in self.padding.values.items()
        }
        mask = torch.zeros(len(encodings), longest, dtype=torch.int64)
        for row, encoding in enumerate(encodings):
            length = len(encoding["input_ids"])
            place = slice(0, length) if self.padding.side == "right" else slice(-length, None)
            mask[row, place] = 1
            for name, tensor in inputs.items():
                tensor[row, place] = torch.from_numpy(encoding[name].astype(np.int64))
        inputs["attention_mask"] = mask
        return inputs


@dataclass(frozen=True)
class ImageSplit:
    """Images that are decoded when iterated, or once for all where memory allows.

    Args:
        samples: Raw images of the data's own split.
        indices: Positions [N] in it.
        targets: Labels [N] (int64), in the order of the data, or None.
        transform: What the model wants.
        sha256: Hash of file contents and labels.
        batch_size: Images a batch.
        cache: All decoded images [N, channels, H, W], where they are kept.
    """

    samples: Samples
    indices: Sequence[int]
    targets: Tensor | None
    transform: ImageTransform
    sha256: str
    batch_size: int
    cache: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def labels(self) -> Tensor | None:
        """Labels [N] in the order in which iterating yields the images."""
        return None if self.targets is None else self.targets[self._order()]

    def __iter__(self) -> Iterator[Batch]:
        """Yield (images [B, channels, H, W] in float32, labels [B])."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            order = self._order()
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                if self.cache is not None:
                    pixels = self.cache[batch]
                else:
                    pixels = torch.stack(list(pool.map(self._decoded, batch.tolist())))
                targets = None if self.targets is None else self.targets[batch]
                yield normalize(pixels, self.transform), targets

    def _decoded(self, position: int) -> Tensor:
        return decode(self.samples[self.indices[position]], self.transform)[0]

    def _order(self) -> Tensor:
        mixed = np.random.default_rng(_ORDER_SEED).permutation(len(self.indices))
        return torch.from_numpy(mixed)
