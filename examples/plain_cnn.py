"""A plain torch CNN with BatchNorm, for `compressor compress examples/plain_cnn.py:build`.

``build`` is a factory as compressor takes it: it returns the module and how an image becomes its
input. ``examples/train_plain_cnn.py`` trains it on scikit-learn's digits.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from compressor.models.source import ImageTransform

WIDTHS = (32, 64, 64)


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return convolution, normalization and ReLU; the image shrinks by ``stride``."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            norm=nn.BatchNorm2d(outputs),
            act=nn.ReLU(),
        )
    )


def build() -> tuple[nn.Module, ImageTransform]:
    """Return the untrained network for 3×16×16 images in ten classes, and its preprocessing."""
    module = nn.Sequential(
        OrderedDict(
            block1=block(3, WIDTHS[0], 1),
            block2=block(WIDTHS[0], WIDTHS[1], 2),
            block3=block(WIDTHS[1], WIDTHS[2], 1),
            block4=block(WIDTHS[2], WIDTHS[2], 2),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            head=nn.Linear(WIDTHS[2], 10),
        )
    )
    transform = ImageTransform(input_size=(3, 16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
    return module, transform
