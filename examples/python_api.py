"""The stages from Python, one by one: any module, any batches.

A timm vision transformer (the one that `compressor demo` carries) is measured on scikit-learn's
digits, planned at two budgets from one measurement, factorized, evaluated, saved and loaded.
Nothing here is special to images: batches are (inputs, labels) pairs, and inputs may be a tensor,
a tuple or a dict of tensors.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

import compressor
import compressor.demo


def batches_of(images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return (inputs, labels) batches of 64."""
    return list(zip(images.split(64), labels.split(64), strict=True))


def main() -> None:
    """Run every stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=int, default=512, help="images to measure on")
    options = parser.parse_args()
    digits, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(digits, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = functional.interpolate(pixels.expand(-1, 3, 8, 8), (32, 32), mode="bilinear") * 2 - 1
    targets = torch.tensor(labels)
    train, test = train_test_split(
        range(len(labels)), test_size=600, random_state=0, stratify=labels
    )

    model = timm.create_model(f"local-dir:{compressor.demo.MODEL}", pretrained=True).float().eval()
    held_out = batches_of(images[test], targets[test])
    print(f"dense  accuracy {compressor.evaluate(model, held_out).accuracy:.4f}")

    train = train[: options.calibration]
    measurement = compressor.measure(model, batches_of(images[train], targets[train]))
    small = model
    for budget in ("layers=50%", "layers=30%"):
        plan = compressor.plan(measurement, budget)
        small = compressor.factorize(model, plan)
        accuracy = compressor.evaluate(small, held_out).accuracy
        weights = sum(parameter.numel() for parameter in small.parameters())
        print(f"{budget}  accuracy {accuracy:.4f}  parameters {weights:,}")

    directory = Path("digits-vit-30")
    compressor.save(small, directory)
    again = compressor.load(directory)
    with torch.inference_mode():
        difference = (again(images[:8]) - small.eval()(images[:8])).abs().max()
    print(f"saved and loaded: largest difference of a logit {difference:.1e}")


if __name__ == "__main__":
    main()
