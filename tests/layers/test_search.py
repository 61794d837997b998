"""Which layers are candidates, and why the others stay dense."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from compressor.errors import UsageError
from compressor.layers.search import find_candidates
from tests.contract.small_models import build

X = torch.randn(3, 6, 32, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Runs ``body(self, x)`` over named layers, then a head on the mean token."""

    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(32, 20)

    def forward(self, x):
        return self.head(self.body(self, x).mean(1))


def look(body, x=X, *, heads=(), include=(), exclude=(), **layers):
    model = Model(body, **layers).eval()
    return find_candidates(model, x, heads=heads, include=include, exclude=exclude)


def square():
    return nn.Linear(32, 32)


def test_order_shapes_and_groups_follow_the_calls():
    found = look(
        lambda m, x: m.out(m.q(x) + m.k(x)),
        out=square(),
        k=nn.Linear(32, 32, bias=False),
        q=square(),
    )
    assert list(found.layers) == ["q", "k", "out"]
    assert found.layers["k"].group == "q"
    assert found.layers["out"].group == "out"
    assert not found.layers["k"].has_bias
    assert found.layers["q"].positions == 6
    assert found.left_dense == {"head": "classifier head"}
    assert found.parameters == 3 * 32 * 32 + 2 * 32 + 33 * 20
    assert found.layer_parameters == 3 * 32 * 32
    assert {name: [c.name for c in members] for name, members in found.groups().items()} == {
        "q": ["q", "k"],
        "out": ["out"],
    }


def test_group_is_led_by_a_candidate():
    found = look(lambda m, x: m.a(x) + m.b(x), a=square(), b=square(), exclude=["a"])
    assert found.layers["b"].group == "b"
    assert found.left_dense["a"] == "excluded"


def test_tensor_written_in_place_is_another_tensor():
    def body(m, x):
        x = x + 1
        first = m.a(x)
        x.relu_()
        return first + m.b(x)

    assert look(body, a=square(), b=square()).layers["b"].group == "b"


def test_layers_with_other_further_calls_do_not_share_rows():
    def body(m, x):
        return m.a(m.a(x) + m.b(x))

    found = look(body, a=square(), b=square())
    assert found.layers["a"].group == "a"
    assert found.layers["b"].group == "b"
    assert found.layers["a"].positions == 12
    together = look(lambda m, x: m.a(y := m.a(x) + m.b(x)) + m.b(y), a=square(), b=square())
    assert together.layers["b"].group == "a"


def test_head_is_found_though_its_output_is_not_the_logits():
    class Picks(Model):
        def forward(self, x):
            return functional.log_softmax(self.head(self.body(self, x))[:, -1], 1)

    model = Picks(lambda m, x: m.a(x), a=square()).eval()
    assert find_candidates(model, X).left_dense == {"head": "classifier head"}


def test_both_of_two_averaged_heads_are_found():
    class Two(Model):
        def forward(self, x):
            x = self.body(self, x)
            return (self.head(x[:, 0]) + self.other(x[:, 1])) / 2

    model = Two(lambda m, x: m.a(x), a=square(), other=nn.Linear(32, 20)).eval()
    assert set(find_candidates(model, X).left_dense) == {"head", "other"}


def test_heads_poolers_and_tiny_layers_stay_unless_included():
    def body(m, x):
        return m.widen(m.narrow(m.pooler(m.mine["inner"](x))))

    layers = {
        "mine": nn.ModuleDict({"inner": square()}),
        "pooler": square(),
        "narrow": nn.Linear(32, 8),
        "widen": nn.Linear(8, 32),
    }
    found = look(body, heads=["mine"], **layers)
    assert not found.layers
    assert found.left_dense == {
        "mine.inner": "classifier head",
        "pooler": "pooler",
        "narrow": "tiny (8×32)",
        "widen": "tiny (32×8)",
        "head": "classifier head",
    }
    found = look(body, heads=["mine"], include=["mine.*", "pool*", "narrow", "head"], **layers)
    assert list(found.layers) == ["mine.inner", "pooler", "narrow", "head"]
    assert list(found.left_dense) == ["widen"]


def test_exclude_beats_include():
    found = look(lambda m, x: m.a(x), a=square(), include=["a"], exclude=["a"])
    assert found.left_dense["a"] == "excluded"


def test_pattern_without_a_match_names_the_nearest():
    with pytest.raises(UsageError, match=r"'atenttion' matches no layer. Did you mean 'attention'"):
        look(lambda m, x: m.attention(x), attention=square(), exclude=["atenttion"])


@pytest.mark.parametrize("include", [(), ("a",)])
def test_shared_weights_stay_dense_always(include):
    tied = square()
    tied.weight = nn.Parameter(torch.randn(32, 32))
    embedding = nn.Embedding(32, 32)
    embedding.weight = tied.weight
    found = look(lambda m, x: m.a(x), a=tied, e=embedding, include=include)
    assert found.left_dense["a"] == "its weight is shared with another module"
    one = square()
    found = look(lambda m, x: m.b(m.a(x)), a=one, b=one, include=include)
    assert found.left_dense["a"] == "its weight is shared with another module"


def test_parametrized_and_hook_computed_weights_stay_dense():
    with pytest.warns(FutureWarning, match="weight_norm"):
        older = nn.utils.weight_norm(square())
    found = look(
        lambda m, x: m.b(m.a(x)), a=parametrizations.weight_norm(square()), b=older, include=["*"]
    )
    assert found.left_dense["a"].startswith("its weight is parametrized")
    assert found.left_dense["b"].startswith("its weight is parametrized")


def test_attention_that_reads_its_projection_directly():
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    found = look(lambda m, x: m.attention(x, x, x)[0], attention=attention)
    assert "its forward is never called" in found.left_dense["attention.out_proj"]


class ReadsShape(nn.Module):
    """Calls its first layer, but looks at the weight's shape before."""

    def __init__(self):
        super().__init__()
        self.first, self.second = square(), square()

    def forward(self, x):
        if self.first.weight.shape != (32, 32):
            raise ValueError("unexpected shape")
        return self.second(self.first(x))


class ReadsWeight(nn.Module):
    """Calls one layer, and uses another one's weight and also its forward (as BEiT does)."""

    def __init__(self):
        super().__init__()
        self.used = square()

    def forward(self, x):
        return functional.linear(x, self.used.weight, self.used.bias) + self.used(x)


def test_parents_that_read_weights_get_their_layers_back():
    found = look(
        lambda m, x: m.fine(m.reads(m.shape(x))),
        fine=square(),
        reads=ReadsWeight(),
        shape=ReadsShape(),
    )
    assert list(found.layers) == ["fine"]
    reason = "its parent reads the weight directly"
    assert found.left_dense["reads.used"] == reason
    assert found.left_dense["shape.first"] == found.left_dense["shape.second"] == reason


def test_error_that_no_layer_explains_is_not_swallowed():
    class Fails(Model):
        calls = 0

        def forward(self, x):
            Fails.calls += 1
            if Fails.calls > 1:
                raise KeyError("mine")
            return super().forward(x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Fails(lambda m, x: m.a(x), a=square())

        def forward(self, x):
            return self.inner(x)

    # The innermost module with swapped layers is blamed first; then the error stands alone.
    with pytest.raises(KeyError, match="mine"):
        find_candidates(Outer().eval(), X)


def test_layer_that_is_not_reached_or_gets_no_tensor():
    found = look(lambda m, x: m.a(input=x), a=square(), b=square())
    assert found.left_dense["a"] == "it is not called on one tensor"
    assert "never called" in found.left_dense["b"]


def test_rows_that_do_not_belong_to_samples():
    found = look(lambda m, x: m.a(x.transpose(0, 1)[:5]).transpose(0, 1), a=square())
    assert found.left_dense["a"] == "its input rows do not belong to samples"


def test_convolutions_without_a_useful_rank():
    class Cnn(nn.Module):
        def __init__(self):
            super().__init__()
            self.depthwise = nn.Conv2d(32, 32, 3, groups=32, padding=1)
            self.grouped = nn.Conv2d(32, 32, 3, groups=2, padding=1)
            self.point = nn.Conv2d(32, 32, 1)

        def forward(self, x):
            return self.point(self.grouped(self.depthwise(x))).mean((2, 3))

    found = find_candidates(Cnn().eval(), torch.randn(2, 32, 6, 6), include=["*"])
    assert list(found.layers) == ["point"]
    assert found.left_dense["depthwise"].startswith("depthwise")
    assert found.left_dense["grouped"] == "grouped convolution (2 groups of 16 channels)"


def test_factorized_layers_are_told_and_not_taken_apart():
    from compressor.layers.surgery import BuildSpec, install

    model = build("cnn")
    install(model, {"second": BuildSpec("conv2d", 3, False)})
    found = find_candidates(model, torch.randn(2, 3, 16, 16))
    assert found.left_dense["second"] == "already factorized"
    assert not any(name.startswith("second.") for name in (*found.layers, *found.left_dense))


def test_meta_tensors_will_do():
    with torch.device("meta"):
        model = Model(lambda m, x: m.b(m.a(x)), a=square(), b=square()).eval()
        found = find_candidates(model, torch.empty(3, 6, 32))
    assert list(found.layers) == ["a", "b"]


def test_model_is_left_as_it_was():
    model = Model(lambda m, x: m.b(m.a(x)), a=square(), b=square()).eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modules = list(model.modules())
    find_candidates(model, X)
    assert list(model.modules()) == modules
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_blocks_of_real_architectures_are_candidates(name):
    model = build(name)
    from compressor.models import describe

    found = find_candidates(model, describe(model).example_inputs(3))
    each = {"bert": 6, "gpt2": 4, "vit": 6}[name]
    blocks = [layer for layer in found.layers if "layer" in layer or ".h." in layer]
    assert len(blocks) == 2 * each
