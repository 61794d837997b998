"""Every fusion: what is taken apart computes the same on the same storage, and fuses again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor.collapse.capture import capture
from compressor.errors import LayerError
from compressor.forward import Forward, call
from compressor.layers.experts import SeparateExperts
from compressor.layers.fused import FUSIONS, Unfused, fusion_of
from compressor.layers.kinds import kind_of
from compressor.layers.lowrank import lowrank_layers
from compressor.layers.search import find_candidates
from compressor.layers.surgery import fuse, fused_modules, unfuse
from compressor.layers.unfusing import unfused
from compressor.methods.output_error import output_errors
from compressor.methods.recipe import Recipe
from tests.contract.architectures import ARCHITECTURES, build


class Case(NamedTuple):
    build: Callable[[], nn.Module]
    call: Callable[[nn.Module], Tensor]


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape)))


def attention(batch_first: bool = True, **options: object) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        module = nn.MultiheadAttention(24, 4, batch_first=batch_first, **options)  # type: ignore[arg-type]
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
        return module

    return make


def attend(batch_first: bool = True, *, cross: int | None = None, **options: object):
    def call(module: nn.Module) -> Tensor:
        shape = (2, 5, 24) if batch_first else (5, 2, 24)
        query = seeded(*shape)
        key = query if cross is None else seeded(*shape[:-1], cross)
        out, weights = module(query, key, key, **options)
        return out if weights is None else torch.cat([out.flatten(), weights.flatten()])

    return call


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
ROUTES = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 0], [1, 0], [2, 1]])


def experts(architecture: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = build(f"transformers-{architecture}")
        name = next(name for name, found in fused_modules(model).items() if found == "experts")
        module = model.get_submodule(name)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
        return module

    return make


def route(module: nn.Module) -> Tensor:
    return module(seeded(6, 32), ROUTES, seeded(6, 2).softmax(1))


def convolve(module: nn.Module) -> Tensor:
    return module(seeded(2, 64, 9, 7))


CASES: dict[str, dict[str, Case]] = {
    "multihead-attention": {
        "self": Case(attention(), attend(need_weights=False)),
        "time first, no bias": Case(attention(False, bias=False), attend(False)),
        "weights of each head": Case(attention(), attend(average_attn_weights=False)),
        "cross, other widths": Case(attention(kdim=20, vdim=20), attend(cross=20)),
        "causal": Case(attention(), attend(attn_mask=CAUSAL, is_causal=True, need_weights=False)),
        "padding": Case(attention(), attend(key_padding_mask=PADDING)),
        "both masks, as numbers": Case(
            attention(),
            attend(
                attn_mask=torch.zeros(8, 5, 5).masked_fill(CAUSAL, -9.0),
                key_padding_mask=torch.zeros(2, 5).masked_fill(PADDING, -7.0),
                need_weights=False,
            ),
        ),
        "one sample": Case(attention(), lambda m: m(*[seeded(5, 24)] * 3)[0]),
    },
    "experts": {
        "gated": Case(experts("mixtral"), route),
        "transposed, biased, interleaved": Case(experts("gpt-oss"), route),
    },
    "grouped-convolution": {
        "3×3": Case(lambda: nn.Conv2d(64, 96, 3, stride=2, padding=1, groups=4), convolve),
        "reflect, no bias": Case(
            lambda: nn.Conv2d(
                64, 32, (3, 1), padding=1, dilation=2, groups=2, bias=False, padding_mode="reflect"
            ),
            convolve,
        ),
    },
}
"""Modules and calls by fusion; a new fusion needs a line here."""


@pytest.fixture(
    params=[
        pytest.param((name, case), id=f"{name}: {label}")
        for name in FUSIONS.names()
        for label, case in CASES[name].items()
    ]
)
def example(request: pytest.FixtureRequest) -> tuple[str, nn.Module, Callable[..., Tensor]]:
    name, (make, call) = request.param
    torch.manual_seed(0)
    return name, make().eval(), call


def test_taken_apart_it_computes_the_same(example) -> None:
    name, module, call = example
    assert fusion_of(module) == name
    apart = FUSIONS.get(name).unfuse(module)
    assert fusion_of(apart) is None
    torch.testing.assert_close(call(apart), call(module), rtol=1e-4, atol=1e-5)


def test_every_matrix_is_a_layer_on_the_storage_it_had(example) -> None:
    name, module, _ = example
    apart = FUSIONS.get(name).unfuse(module)
    storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
    for inner, parameter in apart.named_parameters():
        assert parameter.untyped_storage().data_ptr() in storages, inner
        assert kind_of(apart.get_submodule(inner.rpartition(".")[0])) is not None
    assert sum(p.numel() for p in apart.parameters()) == sum(p.numel() for p in module.parameters())


def test_it_fuses_again(example) -> None:
    name, module, call = example
    again = FUSIONS.get(name).unfuse(module).fused()
    assert type(again) is type(module)
    assert again.state_dict().keys() == module.state_dict().keys()
    assert all(torch.equal(t, module.state_dict()[key]) for key, t in again.state_dict().items())
    assert torch.equal(call(again), call(module))


def test_gradients_reach_every_layer(example) -> None:
    name, module, call = example
    apart = FUSIONS.get(name).unfuse(module)
    call(apart).square().sum().backward()
    assert all(parameter.grad is not None for parameter in apart.parameters())


class Encoder(nn.Module):
    """torch's own encoder, which would take its fused path and stack padded inputs."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.batch_first, self.head = batch_first, nn.Linear(32, 20)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        x = x if self.batch_first else x.transpose(0, 1)
        if padding is not None:  # what encoders leave at padding depends on the path they take
            x = x.masked_fill(padding[..., None], 0.0)
        return self.head(x.mean(1))


LABELS = torch.arange(8) % 4


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_torch_encoders_compress_and_come_back(padded: bool, tmp_path) -> None:
    torch.manual_seed(0)
    model = Encoder().eval()
    inputs = seeded(8, 6, 32)
    if padded:
        inputs = (inputs, torch.arange(6) >= torch.arange(8)[:, None].clamp_min(3))
    small = compressor.compress(
        model, [(inputs, LABELS)] * 2, "layers=60%", selection=[(inputs, LABELS)]
    )
    names = {name.removeprefix("encoder.layers.0.") for name in small.plan.ranks}
    assert {f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")} <= names
    assert {"linear1", "linear2"} <= names
    assert small.plan.measurement.candidates.left_dense == {"head": "classifier head"}
    compressor.save(small.model, tmp_path / "small")
    again = compressor.load(tmp_path / "small", model=Encoder)
    with torch.no_grad():
        assert torch.equal(call(again, inputs), call(small.model, inputs))
    if not padded:
        dense = compressor.export(small.model, "dense", tmp_path / "dense", inputs=inputs)
        assert dense.difference <= 1e-4


def test_what_has_no_factorized_layer_stays_apart_and_comes_back(tmp_path) -> None:
    """Put back, it would have the encoder layer read its neighbours' factors in its fused path."""
    torch.manual_seed(0)
    model = Encoder().eval()
    inputs = seeded(8, 6, 32)
    small = compressor.compress(
        model,
        [(inputs, LABELS)],
        "layers=60%",
        selection=[(inputs, LABELS)],
        exclude=["*.0.self_attn.*"],
        out=tmp_path / "small",
    ).model
    again = compressor.apply_(Encoder().eval(), tmp_path / "small")
    for module in (small, again):
        assert isinstance(module.encoder.layers[0].self_attn, Unfused)
        assert not lowrank_layers(module.encoder.layers[0].self_attn)
        assert lowrank_layers(module.encoder.layers[1].self_attn)
    assert type(model.encoder.layers[1].self_attn) is nn.MultiheadAttention
    with torch.no_grad():
        assert torch.equal(again(inputs), small(inputs))
    with pytest.raises(LayerError, match="can be taken apart"):
        compressor.load(tmp_path / "small", model=nn.Sequential(nn.Linear(2, 2)))


def test_statistics_are_of_the_tokens_that_reach_an_expert() -> None:
    """The rows of each expert against those picked by hand from the router's choice."""
    torch.manual_seed(0)
    block, features = nn.Module(), 32
    block.inner = experts("mixtral")()
    routes = ROUTES.repeat(4, 1)[:24].clone()
    routes[:8] = torch.tensor([0, 1])  # no token of the first samples reaches expert 2

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.head = block.inner, nn.Linear(features, 4)

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(0, 1)
            chosen = routes[: len(flat)]
            out = self.experts(flat, chosen, torch.full(chosen.shape, 0.5))
            return self.head(out.view_as(x).mean(1))

    model = Model().eval()
    x, labels = seeded(6, 4, features), torch.arange(6) % 2
    apart = unfused(model, x)
    assert isinstance(apart.experts, SeparateExperts)
    found = capture(
        apart,
        [(x, labels)],
        find_candidates(apart, x),
        classes=4,
        forward=Forward(),
        gradients=True,
    )
    for number in range(3):
        mine = (routes == number).any(1)
        rows = x.flatten(0, 1)[mine].double()
        moments = found.layers[f"experts.{number}.widen"].inputs
        assert moments.total == int(mine.sum())
        torch.testing.assert_close(moments.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            moments.total_covariance, torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-5
        )
        by_label = torch.bincount(labels.repeat_interleave(4)[mine], minlength=4).double()
        torch.testing.assert_close(moments.counts, by_label)
        assert found.layers[f"experts.{number}.down"].fisher.energy > 0


def test_an_expert_that_no_token_reaches_stays_dense() -> None:
    entry = ARCHITECTURES["transformers-qwen2-moe"]
    model = entry.wrap(build("transformers-qwen2-moe"))
    router = model.inner.model.layers[0].mlp.gate
    with torch.no_grad():
        router.weight.zero_()  # ties go to the first experts, so that the last ones are idle
    found = compressor.measure(model, [(entry.inputs(4), torch.arange(4) % 3)] * 2)
    idle = {n for n, why in found.candidates.left_dense.items() if "no calibration data" in why}
    assert len(idle) == 4  # two experts of two matrices
    small = compressor.factorize(model, compressor.plan(found, "layers=60%"))
    dense = model.inner.model.layers[0].mlp.experts
    (number, *_) = {int(name.split(".")[-2]) for name in idle}
    kept = small.inner.model.layers[0].mlp.experts.get_submodule(f"{number}.down").weight
    assert torch.equal(kept, dense.down_proj[number])


def test_a_parent_that_reads_the_parameters_keeps_its_module() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = attention()(), nn.Linear(24, 20)

        def forward(self, x: Tensor) -> Tensor:
            q = x @ self.attention.in_proj_weight[:24].T
            return self.head(self.attention(q, x, x)[0].mean(1))

    model, x = Reader().eval(), seeded(3, 5, 24)
    assert unfused(model, x) is model


def test_shared_modules_stay_shared() -> None:
    shared = attention()()
    model = nn.ModuleDict({"first": shared, "second": shared})
    unfuse(model, fused_modules(model))
    assert model["first"] is model["second"]
    fuse(model)
    assert model["first"] is model["second"]
    assert type(model["first"]) is nn.MultiheadAttention


def test_an_expert_that_the_first_samples_do_not_reach_is_not_refused() -> None:
    entry = ARCHITECTURES["transformers-qwen2-moe"]
    model = entry.wrap(build("transformers-qwen2-moe"))
    batches = [(entry.inputs(n), torch.arange(n) % 3) for n in (4, 5, 6, 7)]
    found = compressor.measure(model, batches, selection=[batches[0]], method="svd")
    with torch.no_grad():
        found.model.inner.model.layers[0].mlp.gate.weight.zero_()  # ties: two experts are idle
    small = compressor.factorize(model, compressor.plan(found, "layers=60%", method="svd"))
    checked = output_errors(found, small, Recipe(metric="identity"))
    factorized = lowrank_layers(small)
    missing = {name for name in factorized if name not in checked}
    assert missing
    assert all(".experts." in name for name in missing)
