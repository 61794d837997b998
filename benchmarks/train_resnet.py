r"""Train the ResNet of resnet.py on some classes of Tiny-ImageNet; ten minutes on two cores.

python -m benchmarks.train_resnet --images tiny-imagenet-val --out resnet

writes ``resnet/resnet.pt`` and ``resnet/data/{train,test}/<class>``, the split of the images that
it trained and tested on, which the workload ``resnet-batchnorm`` takes as its two places.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from benchmarks.resnet import CLASSES, build
from compressor.models.source import ImageTransform

TEST_SHARE = 5
"""Every fifth image of a class tests."""

PADDING = 4


def split_images(images: Path, out: Path) -> None:
    """Copy evenly spread classes into train and test folders under ``out``.

    Raises:
        SystemExit: If there are too few class folders.
    """
    folders = sorted(folder for folder in images.iterdir() if folder.is_dir())
    if len(folders) < CLASSES:
        raise SystemExit(f"{images} has {len(folders)} class folders; expected {CLASSES} or more.")
    for index in range(CLASSES):
        folder = folders[index * len(folders) // CLASSES]
        for number, file in enumerate(sorted(p for p in folder.iterdir() if p.is_file())):
            part = "test" if number % TEST_SHARE == 0 else "train"
            target = out / part / folder.name / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)


def load_split(folder: Path, transform: ImageTransform) -> tuple[Tensor, Tensor]:
    """Return the normalized images [N, 3, H, W] and labels [N] of class folders."""
    prepare = v2.Compose(
        [
            v2.Resize(transform.input_size[1:], interpolation=v2.InterpolationMode.BILINEAR),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(transform.mean), list(transform.std)),
        ]
    )
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
    images: list[Tensor] = []
    labels: list[int] = []
    for label, entry in enumerate(classes):
        for file in sorted(entry.iterdir()):
            images.append(prepare(Image.open(file).convert("RGB")))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def augmented(images: Tensor) -> Tensor:
    """Return the images [B, 3, H, W] each shifted by up to `PADDING` pixels, half of them mirrored.

    Colours are scaled a little, too.
    """
    size = images.shape[-1]
    padded = functional.pad(images, (PADDING,) * 4, mode="reflect")
    offsets = torch.randint(0, 2 * PADDING + 1, (len(images), 2)).tolist()
    moved = torch.stack(
        [
            image[:, top : top + size, left : left + size]
            for image, (top, left) in zip(padded, offsets, strict=True)
        ]
    )
    mirrored = torch.rand(len(images)) < 0.5
    moved[mirrored] = moved[mirrored].flip(-1)
    return moved * (0.8 + 0.4 * torch.rand(len(images), 3, 1, 1))


def train(
    module: nn.Module, images: Tensor, labels: Tensor, *, epochs: int, minutes: float
) -> None:
    """Fit with SGD, momentum and weight decay under a one-cycle schedule.

    ``minutes`` bounds the time: the schedule is shortened after the first epoch if need be.
    """
    size = 64
    start = time.perf_counter()
    optimizer = torch.optim.SGD(
        module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True
    )
    module.train()
    epoch = 0
    while epoch < epochs:
        # A cosine over all epochs, after one of warm-up.
        part = torch.tensor(torch.pi * epoch / epochs)
        rate = 0.02 if epoch == 0 else 0.05 * (1 + float(part.cos()))
        for group in optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        for chosen in torch.split(torch.randperm(len(images)), size):
            logits = module(augmented(images[chosen]))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(chosen)
        epoch += 1
        if epoch == 1:
            took = time.perf_counter() - start
            epochs = max(min(epochs, int(60 * minutes / took)), 2)
        print(f"epoch {epoch}/{epochs}  loss {total / len(images):.3f}", flush=True)


def main() -> None:
    """Split, train, test and save a state dict."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--minutes", type=float, default=12, help="longest time to train")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    data = options.out / "data"
    if not data.exists():
        split_images(options.images, data)
    module, transform = build()
    images, labels = load_split(data / "train", transform)
    train(module, images, labels, epochs=options.epochs, minutes=options.minutes)
    images, labels = load_split(data / "test", transform)
    with torch.inference_mode():
        right = (module.eval()(images).argmax(1) == labels).float().mean()
    print(f"test accuracy {right:.4f}")
    torch.save(module.state_dict(), options.out / "resnet.pt")
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
