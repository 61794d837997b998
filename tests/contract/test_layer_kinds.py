"""Every layer kind: its rows times its matrix are the module's outputs, and factors round-trip."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from compressor.layers.expert_linear import ExpertLinear, Routed
from compressor.layers.kinds import (
    LAYER_KINDS,
    FoldingKind,
    LayerKind,
    folding_kinds,
    kind_of,
    rank_shape,
)
from compressor.layers.lowrank import LOW_RANK_TYPES
from compressor.methods.decompose import decompose
from compressor.methods.separable import decompose_separable, widened

SAMPLES = 3

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    module = Conv1D(12, 8)
    nn.init.normal_(module.bias)
    return module


def expert(rows: int, *, bias: bool = True) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = ExpertLinear(8, 12, bias=bias)
        module.routed = Routed(torch.arange(rows), rows)
        return module

    return build


def convolution(**geometry: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(3, 7, **geometry)  # type: ignore[arg-type]


def sequence_convolution(**geometry: object) -> Callable[[], nn.Module]:
    return lambda: nn.Conv1d(3, 7, **geometry)  # type: ignore[arg-type]


CASES: dict[str, dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]] = {
    "linear": {
        "tokens": (lambda: nn.Linear(8, 12), (SAMPLES, 5, 8)),
        "vectors, tall": (lambda: nn.Linear(8, 12), (SAMPLES, 8)),
        "maps, wide, no bias": (lambda: nn.Linear(12, 8, bias=False), (SAMPLES, 2, 3, 12)),
        "windows": (lambda: nn.Linear(8, 12), (4 * SAMPLES, 5, 8)),
    },
    "embedding": {
        "tokens": (lambda: nn.Embedding(11, 6), (SAMPLES, 5)),
        "one token": (lambda: nn.Embedding(5, 8, padding_idx=0), (SAMPLES,)),
    },
    "conv1d": {"tokens": (conv1d, (SAMPLES, 5, 8))},
    "expert": {
        "tokens": (expert(5 * SAMPLES), (5 * SAMPLES, 8)),
        "no bias": (expert(5 * SAMPLES, bias=False), (5 * SAMPLES, 8)),
    },
    "convolution1d": {
        "width 1": (sequence_convolution(kernel_size=1), (SAMPLES, 3, 5)),
        "width 3, no bias": (sequence_convolution(kernel_size=3, bias=False), (SAMPLES, 3, 6)),
        "stride, padding": (
            sequence_convolution(kernel_size=3, stride=2, padding=1),
            (SAMPLES, 3, 9),
        ),
        "dilation": (sequence_convolution(kernel_size=3, dilation=2, stride=3), (SAMPLES, 3, 12)),
        "same": (sequence_convolution(kernel_size=4, padding="same"), (SAMPLES, 3, 6)),
        "circular": (
            sequence_convolution(kernel_size=3, padding=1, padding_mode="circular"),
            (SAMPLES, 3, 5),
        ),
        "long": (sequence_convolution(kernel_size=3), (SAMPLES, 3, 150)),
    },
    "conv2d": {
        "1×1": (convolution(kernel_size=1), (SAMPLES, 3, 4, 5)),
        "1×1, stride": (convolution(kernel_size=1, stride=2), (SAMPLES, 3, 5, 5)),
        "3×3, no bias": (convolution(kernel_size=3, bias=False), (SAMPLES, 3, 6, 5)),
        "stride, padding": (convolution(kernel_size=3, stride=2, padding=1), (SAMPLES, 3, 7, 9)),
        "dilation": (convolution(kernel_size=(2, 3), dilation=(2, 1)), (SAMPLES, 3, 7, 8)),
        "same": (convolution(kernel_size=4, padding="same"), (SAMPLES, 3, 6, 6)),
        "reflect": (
            convolution(kernel_size=3, padding=2, padding_mode="reflect"),
            (SAMPLES, 3, 5, 6),
        ),
        "circular": (
            convolution(kernel_size=3, padding=(1, 0), padding_mode="circular"),
            (SAMPLES, 3, 5, 6),
        ),
        "large map": (convolution(kernel_size=3, stride=(1, 2)), (SAMPLES, 3, 20, 30)),
    },
    "conv2d-spatial": {
        "3×3, no bias": (convolution(kernel_size=3, bias=False), (SAMPLES, 3, 6, 5)),
        "stride, padding": (convolution(kernel_size=3, stride=2, padding=1), (SAMPLES, 3, 7, 9)),
        "one stride an axis": (
            convolution(kernel_size=(3, 2), stride=(1, 3), padding=(0, 1)),
            (SAMPLES, 3, 7, 9),
        ),
        "dilation": (convolution(kernel_size=(2, 3), dilation=(2, 1)), (SAMPLES, 3, 7, 8)),
        "same, even kernel": (convolution(kernel_size=4, padding="same"), (SAMPLES, 3, 6, 6)),
        "same, dilation": (
            convolution(kernel_size=(3, 4), padding="same", dilation=(2, 3)),
            (SAMPLES, 3, 7, 9),
        ),
        "valid": (convolution(kernel_size=3, padding="valid"), (SAMPLES, 3, 6, 6)),
        "reflect": (
            convolution(kernel_size=3, padding=2, padding_mode="reflect"),
            (SAMPLES, 3, 5, 6),
        ),
        "replicate, same": (
            convolution(kernel_size=(4, 3), padding="same", padding_mode="replicate"),
            (SAMPLES, 3, 5, 6),
        ),
        "circular": (
            convolution(kernel_size=3, padding=(1, 2), padding_mode="circular"),
            (SAMPLES, 3, 5, 6),
        ),
        "large map": (convolution(kernel_size=3, stride=(1, 2)), (SAMPLES, 3, 20, 30)),
    },
}
"""Modules and input shapes by kind; a new kind needs a line here."""


def cases() -> Iterator[object]:
    for name in LAYER_KINDS.names():
        for label, case in CASES[name].items():
            yield pytest.param((name, case), id=f"{name}: {label}")


@pytest.fixture(params=list(cases()))
def example(request: pytest.FixtureRequest) -> tuple[LayerKind, nn.Module, Tensor]:
    name, (build, shape) = request.param
    torch.manual_seed(0)
    kind, module = LAYER_KINDS.get(name), build().double().eval()
    if kind.lookup:
        return kind, module, torch.randint(kind.shape(module)[1] - 1, shape)
    return kind, module, torch.randn(shape).double()


def bias_of(module: nn.Module) -> Tensor | float:
    bias = getattr(module, "bias", None)
    return 0.0 if bias is None else bias.detach()


def without_bias(kind: LayerKind, bias: bool) -> None:
    if bias and kind.lookup:
        pytest.skip("lookups have no bias")


def full_factors(kind: LayerKind, module: nn.Module) -> tuple[Tensor, Tensor]:
    """Return factors at full rank."""
    rank, matrix = min(rank_shape(kind, module)), kind.matrix(module)
    if isinstance(kind, FoldingKind):
        return decompose_separable(matrix, module.kernel_size[1]).factors(rank)
    return decompose(matrix).factors(rank)


def random_factors(kind: LayerKind, module: nn.Module, rank: int) -> tuple[Tensor, Tensor]:
    """Return factors of a form that the kind can take."""
    m, n = kind.shape(module)
    if isinstance(kind, FoldingKind):
        taps = module.kernel_size[1]
        return torch.randn(m, rank * taps), widened(torch.randn(rank, n // taps), taps)
    return torch.randn(m, rank), torch.randn(rank, n)


def own_kind(kind: LayerKind) -> str:
    """Return the kind that a module of another form belongs to."""
    return "conv2d" if isinstance(kind, FoldingKind) else kind.name


def test_is_recognised_as_its_kind_alone(example):
    kind, module, _ = example
    assert kind_of(module).name == own_kind(kind)
    matching = {other.name for _, other in LAYER_KINDS.items() if other.matches(module)}
    assert {own_kind(kind), kind.name} | {k.name for k in folding_kinds(module)} == matching
    assert kind.refusal(module) is None


def test_rank_goes_with_the_weights_of_the_factors(example):
    kind, module, _ = example
    lowrank = kind.build(module, 2, bias=False)
    assert sum(p.numel() for p in lowrank.parameters()) == 2 * sum(rank_shape(kind, module))


def test_matrix_has_the_shape(example):
    kind, module, _ = example
    assert kind.matrix(module).shape == kind.shape(module)
    assert not kind.matrix(module).requires_grad


def test_matrix_on_rows_gives_the_outputs(example):
    kind, module, x = example
    outputs = module(x).detach()
    rows = kind.rows(module, x, SAMPLES)
    found = kind.output_rows(module, outputs, SAMPLES)
    assert rows.shape[:2] == found.shape[:2]
    assert rows.shape[0] == SAMPLES
    torch.testing.assert_close(rows @ kind.matrix(module).T + bias_of(module), found)


def test_matrix_on_all_rows_gives_all_outputs(example):
    kind, module, x = example
    outputs = module(x).detach()
    found = kind.all_output_rows(module, outputs, SAMPLES)
    assert found.numel() == outputs.numel()
    rows = kind.all_rows(module, x, SAMPLES)
    torch.testing.assert_close(rows @ kind.matrix(module).T + bias_of(module), found)


def test_rows_stay_with_their_sample(example):
    kind, module, x = example
    changed = x.clone()
    changed[-(len(x) // SAMPLES) :] += 1  # the last sample alone
    moved = (kind.rows(module, changed, SAMPLES) != kind.rows(module, x, SAMPLES)).any(2).any(1)
    assert moved.tolist() == [False] * (SAMPLES - 1) + [True]


def test_rows_that_fit_no_sample_are_told(example):
    kind, module, x = example
    assert kind.rows(module, x, len(x) + 1) is None


@pytest.mark.parametrize("bias", [False, True])
def test_factors_round_trip(example, bias):
    kind, module, x = example
    without_bias(kind, bias)
    m, _ = kind.shape(module)
    lowrank = kind.build(module, 2, bias=bias)
    assert isinstance(lowrank, LOW_RANK_TYPES)
    assert lowrank.kind == kind.name
    assert lowrank.rank == 2
    assert kind_of(lowrank) is None
    assert {p.dtype for p in lowrank.parameters()} == {torch.float64}
    up, down = (factor.double() for factor in random_factors(kind, module, 2))
    offset = torch.randn(m).double()
    kind.fill(lowrank, up, down, offset if bias else None)
    for found, given in zip(kind.factors(lowrank), (up, down), strict=True):
        torch.testing.assert_close(found, given)
    out = kind.all_output_rows(module, lowrank(x).detach(), SAMPLES)
    expected = kind.all_rows(module, x, SAMPLES) @ (up @ down).T
    torch.testing.assert_close(out, expected + offset if bias else expected)


def test_full_rank_is_the_dense_layer(example):
    kind, module, x = example
    bias = getattr(module, "bias", None)
    lowrank = kind.build(module, min(rank_shape(kind, module)), bias=bias is not None)
    up, down = full_factors(kind, module)
    kind.fill(lowrank, up, down, None if bias is None else bias.detach())
    torch.testing.assert_close(lowrank(x), module(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_dense_layer_is_the_product_of_the_factors(example, bias):
    kind, module, x = example
    without_bias(kind, bias)
    m, _ = kind.shape(module)
    lowrank = kind.build(module, 2, bias=bias)
    kind.fill(lowrank, *random_factors(kind, module, 2), torch.randn(m) if bias else None)
    dense = kind.dense(lowrank)
    assert kind_of(dense).name == own_kind(kind)
    assert kind.matches(dense)
    assert {p.dtype for p in dense.parameters()} == {torch.float64}
    torch.testing.assert_close(dense(x), lowrank(x), rtol=1e-9, atol=1e-9)
    up, down = kind.factors(lowrank)
    torch.testing.assert_close(kind.matrix(dense), up @ down)


def test_meta_skeleton_stays_meta(example):
    kind, module, _ = example
    skeleton = kind.build(module.to("meta"), 1, bias=not kind.lookup)
    assert all(p.is_meta for p in skeleton.parameters())


def test_layers_of_one_geometry_share_rows(example):
    kind, module, x = example
    assert kind.sharing(module) == kind.sharing(kind_like(module))
    torch.testing.assert_close(
        kind.rows(module, x, SAMPLES), kind.rows(kind_like(module), x, SAMPLES)
    )


def kind_like(module: nn.Module) -> nn.Module:
    import copy

    twin = copy.deepcopy(module)
    nn.init.normal_(twin.weight)
    return twin
