"""A ResNet with BatchNorm for small images, as a factory that compressor takes.

He et al., "Deep Residual Learning", arXiv 1512.03385, section 4.2: three stages of 16, 32 and 64
channels, n residual blocks each (depth 6n + 2), here with 1×1 convolutions where shapes change.
``build`` reads nothing: the number of classes is fixed by what train_resnet.py trains it on.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from compressor.models.source import ImageTransform

WIDTHS = (16, 32, 64)
BLOCKS = 3
CLASSES = 20
PIXELS = 32


class Block(nn.Module):
    """Two 3×3 convolutions and the way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, images: Tensor) -> Tensor:
        """Map [B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        inner = functional.relu(self.norm1(self.conv1(images)))
        result: Tensor = self.norm2(self.conv2(inner)) + self.shortcut(images)
        return functional.relu(result)


def build() -> tuple[nn.Module, ImageTransform]:
    """Return the untrained network for 3×32×32 images, and its preprocessing."""
    stem = [nn.Conv2d(3, WIDTHS[0], 3, padding=1, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()]
    blocks = [
        Block(
            WIDTHS[max(stage - 1, 0)] if index == 0 else WIDTHS[stage],
            WIDTHS[stage],
            2 if stage > 0 and index == 0 else 1,
        )
        for stage in range(len(WIDTHS))
        for index in range(BLOCKS)
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], CLASSES)]
    module = nn.Sequential(*stem, *blocks, *head)
    transform = ImageTransform(
        input_size=(3, PIXELS, PIXELS), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)
    )
    return module, transform
