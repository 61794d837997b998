"""Reading images: each is decoded once to see that it can be, and kept where memory allows."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from compressor.data.batches import ImageSplit
from compressor.data.hashing import content_digest, split_hash
from compressor.data.preprocessing import UnreadableImageError, check_transform, decode
from compressor.data.reading import Drawn, ReadSplit, note_skipped
from compressor.errors import DataError
from compressor.forward import default_device
from compressor.models.source import LoadedModel
from compressor.progress import Progress

DEFAULT_BATCH_SIZE = 64

PIXELS_ON_CPU = 8 * 224**2
"""Pixels of a batch, at most, on a CPU: the system clears the pages of larger activations anew in
each forward. 64 images of 224×224 through EfficientNet-Lite0, CPU-seconds: 4.3 in batches of 32,
2.3 in batches of 8."""

CACHE_BYTES = 512 * 2**20
_CHUNK = 256


def default_batch_size(model: LoadedModel) -> int:
    """Return how many images a model takes at once where nobody says."""
    if model.transform is None or default_device(model.module).type != "cpu":
        return DEFAULT_BATCH_SIZE
    _, height, width = model.transform.input_size
    return min(DEFAULT_BATCH_SIZE, max(1, PIXELS_ON_CPU // (height * width)))


class ImageReader:
    """Decodes images for one model.

    Decoded images of the splits are kept, first come first served, as long as they fit into
    ``cache_bytes``, so that the many passes of a run decode them once.

    Args:
        model: A model with an image transform.
        batch_size: Images a batch; None takes 64, or fewer of large ones on a CPU.
        strict: Refuse images that cannot be read instead of skipping them.
        cache_bytes: Memory for decoded images.

    Raises:
        DataError: If the model has no transform, or one that images cannot be put through.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_size: int | None,
        strict: bool,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        if model.transform is None:
            raise DataError(
                f"It is not known how {model.reference} wants its images. Give --input-size, "
                f"--mean and --std."
            )
        check_transform(model.transform)
        self._transform = model.transform
        self.batch_size = batch_size or default_batch_size(model)
        self._strict = strict
        self._cache_left = cache_bytes

    def read(self, drawn: Drawn, *, progress: Progress) -> ReadSplit:
        """Decode the drawn images."""
        indices: list[int] = []
        digests: list[bytes] = []
        problems: dict[int, str] = {}
        rows = [int(index) for index in drawn.draw.indices]
        cache: Tensor | None = None
        shape: torch.Size | None = None
        chunks = range(0, len(rows), _CHUNK)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in progress.track(
                chunks, description=f"read {drawn.name} images", total=len(chunks)
            ):
                chunk = rows[start : start + _CHUNK]
                results = pool.map(self._attempt, [drawn.raw.samples[row] for row in chunk])
                for row, result in zip(chunk, results, strict=True):
                    if isinstance(result, UnreadableImageError):
                        problems[row] = str(result)
                        continue
                    pixels, digest = result
                    if shape is None:
                        shape = pixels.shape
                        cache = self._reserve(len(rows), pixels)
                    if pixels.shape != shape:
                        raise DataError(
                            f"{drawn.where(row)}: the input transform gives {tuple(pixels.shape)}, "
                            f"but {tuple(shape)} for images before. Images of one size are "
                            f"needed; end it with a crop."
                        )
                    if cache is not None:
                        cache[len(indices)] = pixels
                    indices.append(row)
                    digests.append(digest)
        notes = note_skipped(drawn, problems, strict=self._strict)
        split = ImageSplit(
            samples=drawn.raw.samples,
            indices=indices,
            targets=drawn.targets(indices),
            transform=self._transform,
            sha256=split_hash(digests, drawn.raw_labels(indices)),
            batch_size=self.batch_size,
            cache=None if cache is None else cache[: len(indices)],
        )
        return ReadSplit(split, frozenset(digests), notes)

    def _reserve(self, count: int, like: Tensor) -> Tensor | None:
        size = count * like.nbytes
        if size > self._cache_left:
            return None
        self._cache_left -= size
        return torch.empty((count, *like.shape), dtype=like.dtype)

    def _attempt(self, sample: object) -> tuple[Tensor, bytes] | UnreadableImageError:
        try:
            pixels, content = decode(sample, self._transform)
        except UnreadableImageError as error:
            return error
        return pixels, content_digest(content)
