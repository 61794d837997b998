"""A small network with labelled data, in float64, whose inputs are far from white."""

import pytest
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(20, 30)
        self.second = nn.Linear(30, 24)
        self.third = nn.Linear(24, 18, bias=False)
        self.head = nn.Linear(18, 4)

    def forward(self, rows):
        hidden = torch.relu(self.first(rows))
        return self.head(torch.relu(self.third(torch.relu(self.second(hidden)))))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    centres = 3 * torch.randn(4, 20, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(6):
        labels = torch.randint(0, 4, (16,), generator=generator)
        noise = torch.randn(16, 20, generator=generator, dtype=torch.float64)
        found.append((centres[labels] + noise @ mixing, labels))
    return found
