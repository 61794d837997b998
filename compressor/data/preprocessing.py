"""Preparing images as a model's `ImageTransform` says: resize, centre crop, normalize."""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from compressor.errors import DataError
from compressor.models.source import ImageTransform
from compressor.paths import reason

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

# What PIL's decoders raise on damaged files, beside the OSError that they should.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Formats that PIL decodes by itself; for others (EPS) it would start a program."""

LARGEST_FILE = 1 << 28
LARGEST_PIXELS = 100_000_000
"""Bytes of an image file, and pixels as stored or resized, that are read: 300 MB in RGB."""


class UnreadableImageError(DataError):
    """An image file that cannot be decoded."""


def decode(sample: object, transform: ImageTransform) -> tuple[Tensor, bytes]:
    """Read, resize and crop one image.

    The shorter side (for ``squash`` each side) is resized to ⌊size / crop_pct⌋ and the centre is
    cropped, which is what timm's evaluation transform does.

    Args:
        sample: Path or bytes of an image file.
        transform: What the model wants.

    Returns:
        Pixels [channels, H, W] (uint8; where the transform is a person's own, whatever tensor that
        returns) and the file's bytes.

    Raises:
        UnreadableImageError: If the file cannot be decoded.
        DataError: If a person's own transform fails or returns no tensor.
    """
    if not isinstance(sample, (Path, bytes)):
        raise UnreadableImageError("holds no image")
    try:
        content = _content(sample)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _refuse_huge(image.size)
            converted = image.convert(_mode(transform))
    except UnidentifiedImageError as error:  # its own message names an address in memory
        raise UnreadableImageError("is no image") from error
    except _DECODING_ERRORS as error:
        raise UnreadableImageError(reason(error)) from error
    if transform.custom is not None:
        try:
            tensor = transform.custom(converted)
        except Exception as error:  # a person's own code may raise anything
            raise DataError(
                f"The input transform failed on an image of {converted.width}×{converted.height} "
                f"pixels in mode {converted.mode}: {type(error).__name__}: {error}. Mend it, or "
                f"give --input-size, --mean and --std instead."
            ) from error
        if not isinstance(tensor, Tensor):
            raise DataError(
                f"The input transform returned a {type(tensor).__name__}; expected a tensor "
                f"[channels, height, width]. End it with torchvision's ToTensor."
            )
        return tensor, content
    try:
        array = np.array(_fitted(converted, transform), dtype=np.uint8)
    except MemoryError as error:
        raise UnreadableImageError(
            f"has {converted.width}×{converted.height} pixels, too many to resize in the memory "
            f"there is"
        ) from error
    if array.ndim == 2:
        array = array[:, :, None]
    return torch.from_numpy(array).permute(2, 0, 1).contiguous(), content


def normalize(pixels: Tensor, transform: ImageTransform) -> Tensor:
    """Return (pixels / 255 − mean) / std in float32; what a person's own transform gave stays.

    Args:
        pixels: Images [B, channels, H, W] as `decode` gives them.
        transform: Mean and standard deviation of each channel.
    """
    if transform.custom is not None:
        return pixels
    channels = pixels.shape[1]
    mean = torch.tensor(_each(transform.mean, channels)).view(-1, 1, 1)
    std = torch.tensor(_each(transform.std, channels)).view(-1, 1, 1)
    return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)


def check_transform(transform: ImageTransform) -> None:
    """Refuse a transform that images cannot be put through.

    Raises:
        DataError: If the model does not take one or three channels, or the filter is unknown.
    """
    channels = transform.input_size[0]
    _mode(transform)
    if transform.custom is not None:
        return
    if transform.interpolation not in _FILTERS:
        raise DataError(
            f"Unknown interpolation {transform.interpolation!r} in the model's preprocessing; "
            f"expected one of {', '.join(_FILTERS)}."
        )
    for name, values in (("mean", transform.mean), ("std", transform.std)):
        if len(values) not in (1, channels):
            raise DataError(
                f"The model takes {channels} channels, but its {name} has {len(values)} values. "
                f"Give --{name} with one value a channel."
            )


def _mode(transform: ImageTransform) -> str:
    modes = {1: "L", 3: "RGB"}
    try:
        return modes[transform.input_size[0]]
    except KeyError:
        raise DataError(
            f"The model takes {transform.input_size[0]} channels; images have 1 or 3."
        ) from None


def _each(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values * channels if len(values) == 1 else values


def _fitted(image: Image.Image, transform: ImageTransform) -> Image.Image:
    _, height, width = transform.input_size
    filter_ = _FILTERS[transform.interpolation]
    target = math.floor(height / transform.crop_pct), math.floor(width / transform.crop_pct)
    squash = transform.crop_mode == "squash"
    columns, rows = target[::-1] if squash else _resized(image.size, target)
    _refuse_huge((columns, rows))
    if (columns, rows) != image.size:
        image = image.resize((columns, rows), filter_)
    left, top = round((columns - width) / 2.0), round((rows - height) / 2.0)
    return image.crop((left, top, left + width, top + height))


def _content(sample: Path | bytes) -> bytes:
    """Return the bytes of an image file, of which there may not be more than `LARGEST_FILE`."""
    if isinstance(sample, bytes):
        return sample
    with sample.open("rb") as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise UnreadableImageError(f"is larger than {LARGEST_FILE:,} bytes")
    return content


def _refuse_huge(size: tuple[int, int]) -> None:
    """Refuse images whose pixels would fill the memory: few bytes can claim billions of them."""
    if size[0] * size[1] > LARGEST_PIXELS or not min(size):
        raise UnreadableImageError(
            f"is, or would be resized to, {size[0]}×{size[1]} pixels; at most "
            f"{LARGEST_PIXELS:,} are read"
        )


def _resized(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) after resizing until ``target`` (height, width) is just covered."""
    width, height = size
    if target[0] == target[1]:
        short = min(width, height)
        other = int(target[0] * max(width, height) / short)
        return (target[0], other) if width <= height else (other, target[0])
    ratio = min(height / target[0], width / target[1])
    return round(width / ratio), round(height / ratio)
