"""The networks that are trained, and the images they are trained on."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

TEST_DIGITS = 600
MNIST_TRAIN, MNIST_TEST = 5_000, 2_000
"""Images taken of MNIST, evenly spaced: full-batch steps cost in proportion to the first."""


@dataclass(frozen=True)
class Images:
    """A training and a test set in memory, centred by the training set's mean image.

    Args:
        name: What it is called in tables.
        train: Images [N, 1, H, W].
        train_labels: Classes [N].
        test: Images [M, 1, H, W].
        test_labels: Classes [M].
    """

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        """Number of classes K."""
        return int(self.train_labels.max()) + 1


def digits() -> Images:
    """Return scikit-learn's digits, 1,197 to train and 600 to test, stratified by class."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(
        images / 16, labels, test_size=TEST_DIGITS, random_state=0, stratify=labels
    )
    train, test, train_labels, test_labels = (torch.tensor(part) for part in parts)
    return _centred("digits", train.float(), train_labels, test.float(), test_labels, side=8)


def mnist(directory: Path) -> Images:
    """Return every n-th image of MNIST's IDX files (``train-images-idx3-ubyte``, maybe ``.gz``).

    Raises:
        SystemExit: If a file is missing or is no IDX file.
    """
    parts = []
    for prefix, most in (("train", MNIST_TRAIN), ("t10k", MNIST_TEST)):
        images = _read_idx(directory, f"{prefix}-images-idx3-ubyte", dimensions=3)
        labels = _read_idx(directory, f"{prefix}-labels-idx1-ubyte", dimensions=1)
        step = max(1, len(images) // most)
        parts += [images[::step][:most].flatten(1).float() / 255, labels[::step][:most].long()]
    return _centred("MNIST", *parts, side=28)


def _read_idx(directory: Path, name: str, *, dimensions: int) -> Tensor:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            data = gzip.decompress(path.read_bytes()) if path.suffix else path.read_bytes()
            if data[:3] != b"\0\0\x08" or data[3] != dimensions:
                raise SystemExit(f"{path} is no IDX file of {dimensions} dimensions of bytes.")
            sizes = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i]) for i in range(dimensions)]
            found = torch.frombuffer(bytearray(data[4 + 4 * dimensions :]), dtype=torch.uint8)
            return found.reshape(sizes)
    raise SystemExit(f"{directory} holds no {name}; expected MNIST's four IDX files.")


def _centred(
    name: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, *, side: int
) -> Images:
    mean = train.mean(0)
    shape = (-1, 1, side, side)
    return Images(
        name,
        (train - mean).reshape(shape),
        train_labels,
        (test - mean).reshape(shape),
        test_labels,
    )


def mlp(images: Images, *, depth: int, width: int, normalized: bool) -> nn.Sequential:
    """Return a ReLU network of ``depth`` hidden layers; every linear layer has a bias.

    With ``normalized``, BatchNorm follows every hidden linear layer, as a contrast.
    """
    sizes = [images.train[0].numel(), *[width] * depth]
    layers: list[nn.Module] = [nn.Flatten()]
    for columns, rows in pairwise(sizes):
        layers.append(nn.Linear(columns, rows))
        layers += [nn.BatchNorm1d(rows)] if normalized else []
        layers.append(nn.ReLU())
    return _initialized(nn.Sequential(*layers, nn.Linear(width, images.classes)))


def cnn(images: Images) -> nn.Sequential:
    """Return three convolutions and two linear layers with biases and no normalization."""
    side = -(-images.train.shape[-1] // 4)
    return _initialized(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * side * side, 64),
            nn.ReLU(),
            nn.Linear(64, images.classes),
        )
    )


def _initialized(network: nn.Sequential) -> nn.Sequential:
    """Set weights as He et al. 2015 and biases to zero."""
    for layer in network:
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return network
