import io
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from compressor.data.preprocessing import (
    UnreadableImageError,
    check_transform,
    decode,
    normalize,
)
from compressor.errors import DataError
from compressor.models.source import ImageTransform


def encoded(width, height, mode="RGB"):
    channels = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
    shape = (height, width, channels) if channels > 1 else (height, width)
    pixels = np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, mode=None).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("size", [(64, 64), (50, 81), (81, 50), (17, 300), (20, 20)])
@pytest.mark.parametrize(
    ("target", "crop_pct", "crop_mode", "interpolation"),
    [
        ((32, 32), 0.875, "center", "bicubic"),
        ((33, 33), 0.9, "center", "bilinear"),
        ((24, 40), 0.95, "center", "bicubic"),
        ((32, 32), 1.0, "squash", "bilinear"),
        ((24, 40), 0.9, "squash", "bicubic"),
    ],
)
def test_equals_timms_evaluation_transform(size, target, crop_pct, crop_mode, interpolation):
    from timm.data import create_transform

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = ImageTransform((3, *target), mean, std, interpolation, crop_pct, crop_mode)
    content = encoded(*size)
    pixels, returned = decode(content, transform)
    oracle = create_transform(
        (3, *target),
        is_training=False,
        interpolation=interpolation,
        mean=mean,
        std=std,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    )
    expected = oracle(Image.open(io.BytesIO(content)).convert("RGB"))
    assert returned == content
    assert normalize(pixels[None], transform)[0].equal(expected)


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_image_comes_in_the_models_channels(mode, channels):
    transform = ImageTransform((channels, 8, 8), (0.5,), (0.5,))
    pixels, _ = decode(encoded(9, 9, mode), transform)
    assert pixels.shape == (channels, 8, 8)
    assert pixels.dtype == torch.uint8
    assert normalize(pixels[None], transform).shape == (1, channels, 8, 8)


def test_a_transform_of_ones_own_replaces_all_the_rest():
    transform = ImageTransform(
        (3, 8, 8), (0.5,), (0.5,), custom=lambda image: torch.full((3, 5, 5), float(image.width))
    )
    pixels, _ = decode(encoded(9, 7), transform)
    assert normalize(pixels[None], transform).equal(torch.full((1, 3, 5, 5), 9.0))
    broken = ImageTransform((3, 8, 8), (0.5,), (0.5,), custom=lambda image: image)
    with pytest.raises(DataError, match=r"expected a tensor"):
        decode(encoded(9, 7), broken)
    failing = ImageTransform((3, 8, 8), (0.5,), (0.5,), custom=lambda image: 1 / 0)
    with pytest.raises(DataError, match=r"9×7 pixels in mode RGB: ZeroDivisionError"):
        decode(encoded(9, 7), failing)


@pytest.mark.parametrize("content", [b"", b"no image", encoded(30, 30)[:200], None])
def test_what_is_no_whole_image_is_unreadable(content):
    with pytest.raises(UnreadableImageError):
        decode(content, ImageTransform((3, 8, 8), (0.5,), (0.5,)))


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (ImageTransform((4, 8, 8), (0.5,), (0.5,)), "4 channels"),
        (ImageTransform((3, 8, 8), (0.5, 0.5), (0.5,)), "--mean"),
        (ImageTransform((3, 8, 8), (0.5,), (0.5,), interpolation="cubist"), "cubist"),
    ],
)
def test_a_transform_that_cannot_work_is_refused(transform, message):
    with pytest.raises(DataError, match=message):
        check_transform(transform)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds the memory as Linux does")
def test_an_image_too_large_to_resize_is_refused():
    strip = encoded(1, 1_000_000, "L")  # 8 × 8,000,000 pixels once its shorter side is resized
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), limits[1]))
    try:
        with pytest.raises(UnreadableImageError, match=r"1×1000000 pixels, too many to resize"):
            decode(strip, ImageTransform((3, 8, 8), (0.5,), (0.5,)))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
