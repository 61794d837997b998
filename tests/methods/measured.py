"""A small classifier with labelled batches, trained a little so that its layers collapse."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn import functional

from compressor.methods.measurement import Measurement
from compressor.stages import measure

CLASSES = 4


class Net(nn.Module):
    """Two hidden layers, the second without a bias, on token means."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 40), nn.Linear(40, 32, bias=False)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean(1))


def batches(count: int = 8, size: int = 16, seed: int = 0) -> list:
    """Return batches of three tokens around class means, with an offset."""
    generator = torch.Generator().manual_seed(42)
    means = torch.randn(CLASSES, 24, generator=generator)
    generator.manual_seed(seed)
    made = []
    for _ in range(count):
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        noise = torch.randn(size, 3, 24, generator=generator)
        made.append((means[labels][:, None] + noise + 0.5, labels))
    return made


@cache
def trained() -> Net:
    """Return the classifier in eval mode."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for x, labels in batches(40, seed=5):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


@cache
def measured(method: str = "nc1", gradients: bool = True) -> Measurement:
    """Return the measurement of `trained` on `batches`."""
    return measure(trained(), batches(), method=method, gradients=gradients)
