"""What the measuring pass looks at."""

from __future__ import annotations

import pytest
from torch import nn

from compressor.errors import ModelError
from compressor.stages import measure
from tests.methods.measured import batches


def test_models_without_candidates_are_refused_with_reasons():
    model = nn.Sequential(nn.Linear(24, 8), nn.Flatten(), nn.Linear(24, 4))
    with pytest.raises(ModelError, match=r"1 × tiny \(8×24\); 1 × classifier head"):
        measure(model, batches())
    with pytest.raises(ModelError, match="has no linear layer or convolution"):
        measure(nn.Sequential(nn.Flatten()), batches())
