r"""Train the CNN of plain_cnn.py on scikit-learn's digits; half a minute on two cores.

python examples/train_plain_cnn.py --out plain_cnn.pt
compressor compress examples/plain_cnn.py:build --checkpoint plain_cnn.pt \
    --data sklearn:digits --budget layers=60% --out plain-cnn-60
compressor evaluate plain-cnn-60 --factory examples/plain_cnn.py:build --data sklearn:digits
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import torch
from PIL import Image
from plain_cnn import build
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from compressor.data.digits import DigitsSource
from compressor.models.source import ImageTransform
from compressor.settings import DataSettings


def load_split(name: str, transform: ImageTransform) -> tuple[Tensor, Tensor]:
    """Return the normalized images [N, 3, H, W] and labels [N] of one split."""
    split = DigitsSource().read("sklearn:digits", DataSettings(data="sklearn:digits"))[name]
    prepare = v2.Compose(
        [
            v2.Resize(transform.input_size[1:], interpolation=v2.InterpolationMode.BILINEAR),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(transform.mean, transform.std),
        ]
    )
    files = (split.samples[index] for index in range(len(split.labels)))
    images = torch.stack([prepare(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return images, torch.tensor(split.labels)


def train(module: nn.Module, images: Tensor, labels: Tensor, *, epochs: int) -> None:
    """Fit ``module`` with SGD, momentum and weight decay under a cosine schedule."""
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    module.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(64):
            loss = functional.cross_entropy(module(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(chosen)
        schedule.step()
        print(f"epoch {epoch + 1:2d}/{epochs}  loss {total / len(images):.4f}", flush=True)


def main() -> None:
    """Train, test and save a state dict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="file to write, .pt")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    module, transform = build()
    train(module, *load_split("train", transform), epochs=options.epochs)
    images, labels = load_split("test", transform)
    with torch.inference_mode():
        right = (module.eval()(images).argmax(1) == labels).float().mean()
    print(f"test accuracy {right:.4f}")
    torch.save(module.state_dict(), options.out)
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
