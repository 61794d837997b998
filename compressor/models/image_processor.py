"""What transformers' preprocessor_config.json says, as an `ImageTransform`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.errors import ModelError
from compressor.models.quiet import quiet
from compressor.models.source import ImageTransform, ModelOptions
from compressor.paths import worded

if TYPE_CHECKING:
    from transformers import PretrainedConfig

RESAMPLING = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
"""Names of PIL's resampling filters by the number that preprocessor_config.json holds."""


def config_input_size(config: PretrainedConfig) -> tuple[int, int, int] | None:
    """Return channels, height and width as a model's config tells them, if it does."""
    side = getattr(config, "image_size", None)
    channels = getattr(config, "num_channels", 3)
    if isinstance(side, int):
        return channels, side, side
    if isinstance(side, (tuple, list)) and len(side) == 2:
        return channels, int(side[0]), int(side[1])
    return None


def image_transform(
    directory: Path | None, size: tuple[int, int, int] | None, options: ModelOptions
) -> ImageTransform | None:
    """Return the preprocessing that preprocessor_config.json describes, with overrides."""
    path = directory / "preprocessor_config.json" if directory else None
    if path and path.is_file():
        from transformers import AutoImageProcessor

        try:
            with quiet():
                loaded = AutoImageProcessor.from_pretrained(path.parent)  # type: ignore[no-untyped-call]
            return _read(loaded.to_dict(), size, options)
        except Exception as error:  # a processor checks its values only where it first uses them
            raise ModelError(
                f"{path} describes no preprocessing: {type(error).__name__}: {worded(error)}"
            ) from error
    return _read({}, size, options)


def _read(
    processor: dict[str, Any], size: tuple[int, int, int] | None, options: ModelOptions
) -> ImageTransform | None:
    """Return the preprocessing that a processor's values describe, with overrides."""
    mean = options.mean or _floats(processor.get("image_mean"))
    std = options.std or _floats(processor.get("image_std"))
    resized = processor.get("size") or {}
    cropped = processor.get("crop_size") or {}
    crops = bool(processor.get("do_center_crop")) and bool(cropped)
    target = cropped if crops else resized
    crop_pct, squash = 1.0, True
    channels = size[0] if size else 3
    if options.input_size is None and "height" in target:
        size = (channels, int(target["height"]), int(target["width"]))
    if "shortest_edge" in resized:
        squash = False
        edge = int(resized["shortest_edge"])
        if not crops and options.input_size is None:
            size = (channels, edge, edge)
        if crops and "height" in cropped:
            crop_pct = int(cropped["height"]) / edge
    if size is None or mean is None or std is None:
        return None
    return ImageTransform(
        input_size=size,
        mean=mean,
        std=std,
        interpolation=RESAMPLING.get(int(processor.get("resample") or 2), "bilinear"),
        crop_pct=crop_pct,
        crop_mode="squash" if squash else "center",
    )


def _floats(values: Any) -> tuple[float, ...] | None:
    return tuple(float(value) for value in values) if isinstance(values, (list, tuple)) else None
