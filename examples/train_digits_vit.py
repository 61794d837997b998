"""Train the small vision transformer that `compressor demo` compresses.

python examples/train_digits_vit.py --out compressor/demo/digits_vit

A timm ViT (6 blocks, width 192, 17 tokens, 2.7 M parameters) learns scikit-learn's digits from the
1,197 training images of ``sklearn:digits``; the 600 test images are looked at once, after the last
epoch. Weights are stored in half precision, as a timm directory: ``timm.create_model("local-dir:…",
pretrained=True)`` loads them without this package. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from compressor.data.digits import DigitsSource
from compressor.settings import DataSettings

ARCHITECTURE = "vit_tiny_patch16_224"
MODEL_ARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3}
MEAN = STD = (0.5, 0.5, 0.5)


def load_split(name: str) -> tuple[Tensor, Tensor]:
    """Return the images [N, 3, 32, 32], normalized, and labels [N] of one split."""
    split = DigitsSource().read("sklearn:digits", DataSettings(data="sklearn:digits"))[name]
    prepare = v2.Compose(
        [
            v2.Resize((32, 32), interpolation=v2.InterpolationMode.BILINEAR),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    files = (split.samples[index] for index in range(len(split.labels)))
    images = torch.stack([prepare(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    return images, torch.tensor(split.labels)


def jitter(images: Tensor) -> Tensor:
    """Shift (±3 pixels), turn (±10°) and scale (±10 %) each image [B, 3, H, W] at random."""
    count = len(images)
    angle = (torch.rand(count) * 2 - 1) * math.radians(10)
    scale = 1 + (torch.rand(count) * 2 - 1) * 0.1
    shift = (torch.rand(count, 2) * 2 - 1) * (2 * 3 / images.shape[-1])
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = (torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1))
    grid = functional.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def train(
    model: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, batch_size: int
) -> None:
    """Fit ``model`` with AdamW, a warm-up of a tenth of the steps and a cosine after it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    steps = epochs * math.ceil(len(images) / batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.1
    )
    model.train()
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(batch_size):
            loss = functional.cross_entropy(model(jitter(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        print(f"epoch {epoch + 1:3d}/{epochs}  loss {total / len(images):.4f}", flush=True)


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that ``model`` classifies correctly."""
    model.eval()
    right = sum(
        int((model(x).argmax(1) == y).sum())
        for x, y in zip(images.split(100), labels.split(100), strict=True)
    )
    return right / len(labels)


def main() -> None:
    """Train, test and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    model = timm.create_model(ARCHITECTURE, num_classes=10, **MODEL_ARGS)
    train(model, *load_split("train"), epochs=options.epochs, batch_size=options.batch_size)
    stored = model.half().float()  # what the file will hold
    print(f"test accuracy {accuracy(stored, *load_split('test')):.4f}")

    save_for_hf(
        stored.half(),
        str(options.out),
        model_args=MODEL_ARGS,
        model_config={
            "label_names": [str(digit) for digit in range(10)],
            "pretrained_cfg": {
                "tag": "digits",
                "input_size": [3, 32, 32],
                "mean": list(MEAN),
                "std": list(STD),
                "interpolation": "bilinear",
                "crop_pct": 1.0,
                "license": "apache-2.0",
            },
        },
        safe_serialization=True,
    )
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
