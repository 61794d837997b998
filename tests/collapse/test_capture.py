"""One pass over a model: statistics of what its layers really saw, whatever the model does."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from compressor.collapse import gradient_watch
from compressor.collapse.capture import TEMPERATURE, batch_seed, capture, random_signs_
from compressor.collapse.fisher import FisherMoments
from compressor.errors import DataError, LayerError
from compressor.forward import Forward
from compressor.layers.kinds import kind_of
from compressor.layers.search import find_candidates

CLASSES = 3


def linear(m=16, n=16, bias=True):
    return nn.Linear(n, m, bias=bias)


class Model(nn.Module):
    """Runs ``body(self, x)`` over named layers, then a head on the mean token."""

    def __init__(self, body, **layers):
        super().__init__()
        self.body = body
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x, attention_mask=None):
        x = self.body(self, x)
        if attention_mask is None:
            return self.head(x.mean(1))
        weight = attention_mask[..., None].to(x)
        return self.head((x * weight).sum(1) / weight.sum(1))


def model_of(body, **layers):
    torch.manual_seed(0)
    for layer in layers.values():
        for module in layer.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    return Model(body, **layers).double().eval()


def batches_of(sizes=(5, 4), tokens=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, tokens, 16, generator=generator, dtype=torch.float64),
            torch.arange(size) % CLASSES,
        )
        for size in sizes
    ]


def run(model, batches, **options):
    candidates = find_candidates(model, batches[0][0])
    options = {"left_out": 0.0, **options}
    return capture(model, batches, candidates, classes=CLASSES, forward=Forward(), **options)


def seen_rows(model, name, batches):
    """Return what layer ``name`` is called on [N, n] and its outputs [N, m], by a copying hook."""
    kind, inputs, outputs = kind_of(model.get_submodule(name)), [], []
    samples = 0

    def hook(module, args, output):
        inputs.append(kind.rows(module, args[0], samples).clone().flatten(0, 1))
        outputs.append(kind.output_rows(module, output, samples).clone().flatten(0, 1))

    handle = model.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        for x, _ in batches:
            samples = len(x)
            model(x)
    handle.remove()
    return torch.cat(inputs), torch.cat(outputs)


def sample_gradients(model, name, batches, seed):
    """Return each sample's own gradient in a layer's weights under the signs that `capture` draws.

    The weights are differentiated as they stand, one sample at a time; inputs are not centred.
    """
    generator = torch.Generator()
    found = []
    for number, (x, _) in enumerate(batches):
        generator.manual_seed(batch_seed(seed, number))
        with torch.no_grad():
            logits = model(x)
        p = (logits.float() / TEMPERATURE).softmax(1)
        signs = random_signs_(torch.ones_like(p), generator)
        u = p.sqrt() * signs - p * (p.sqrt() * signs).sum(1, keepdim=True)
        weight = model.get_submodule(name).weight
        for index in range(len(x)):
            out = model(x[index : index + 1])
            (gradient,) = torch.autograd.grad(out, weight, u[index : index + 1].to(out))
            found.append(gradient.flatten(1))
    return found


def assert_fisher(found, weight, gradients):
    """Compare with E[GGᵀ] and the other factor seen through the weights, by definition."""
    outputs = sum(g @ g.T for g in gradients) / len(gradients)
    inputs = sum(g.T @ g for g in gradients) / len(gradients)
    m, n = weight.shape
    near, pulled = (
        (outputs, weight @ inputs @ weight.T) if m <= n else (inputs, weight.T @ outputs @ weight)
    )
    torch.testing.assert_close(found.near, near, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(found.pulled, pulled, rtol=1e-5, atol=1e-9)


BODIES = {
    "plain": lambda m, x: m.b(torch.relu(m.a(x))),
    "in-place activation after the first layer": lambda m, x: m.b(m.a(x).relu_()),
    "in-place residual": lambda m, x: m.b(m.a(x)).add_(x.clone()),
    "called twice, the first output written into": lambda m, x: m.b(m.a(m.a(x).mul_(0.5))),
    "two layers on one input": lambda m, x: m.a(x) * m.b(x),
    "called several times": lambda m, x: m.a(torch.tanh(m.b(m.a(torch.tanh(m.a(x)))))),
    "some calls without a part in the logits": lambda m, x: (m.a(x * 2), m.b(m.a(x)))[1],
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_statistics_are_of_what_the_layers_saw(body):
    model, batches = model_of(body, a=linear(bias=False), b=linear(bias=False)), batches_of()
    found = run(model, batches, gradients=True, seed=3)
    for name in ("a", "b"):
        rows, outputs = seen_rows(model, name, batches)
        moments = found.layers[name].inputs
        torch.testing.assert_close(moments.mean, rows.mean(0))
        torch.testing.assert_close(moments.total_covariance, torch.cov(rows.T, correction=0))
        torch.testing.assert_close(found.layers[name].outputs.mean, outputs.mean(0))
        gradients = sample_gradients(model, name, batches, seed=3)
        assert_fisher(found.layers[name].fisher, model.get_submodule(name).weight, gradients)
    assert torch.equal(found.labels, torch.cat([labels for _, labels in batches]))
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in batches])
    torch.testing.assert_close(found.logits, logits.float())


TALL = {
    "beside a residual": lambda m, x: m.down(torch.relu(m.up(m.start(x)))) + m.start(x),
    "called twice": lambda m, x: m.down(m.up(m.down(torch.tanh(m.up(m.start(x)))))),
    "once on the model's own input": lambda m, x: m.down(m.up(m.down(m.up(x)))) + m.start(x),
    "two branches": lambda m, x: m.down(m.up(m.start(x))) * m.down(m.up(m.start(2 * x))),
}


@pytest.mark.parametrize("body", TALL.values(), ids=TALL)
def test_what_the_backward_pass_makes_of_a_tall_layers_gradients_is_not_made_again(
    body, monkeypatch
):
    layers = {"start": linear(), "up": linear(24, 16, bias=False), "down": linear(16, 24)}
    model, batches = model_of(body, **layers), batches_of()
    given = []
    update = FisherMoments.update

    def noted(self, inputs, gradients, seen=None, **options):
        if gradients.shape[2] == 24:
            given.append(seen is not None)
            if seen is not None:
                torch.testing.assert_close(seen, gradients @ model.up.weight)
        update(self, inputs, gradients, seen, **options)

    monkeypatch.setattr(FisherMoments, "update", noted)
    found = run(model, batches, gradients=True, seed=3)
    gradients = sample_gradients(model, "up", batches, seed=3)
    assert_fisher(found.layers["up"].fisher, model.up.weight, gradients)
    # The model's input wants no gradient, so that none is made there.
    assert given == [body is not TALL["once on the model's own input"]] * len(batches)


@pytest.mark.parametrize("asked", ["gradients", "loss"])
def test_activations_of_a_batch_are_freed(asked):
    seen = []

    def body(model, x):
        x = model.second(model.first(x).relu())
        seen.append(weakref.ref(x))
        return x

    run(model_of(body, first=linear(), second=linear()), batches_of(), **{asked: True})
    gc.collect()
    assert len(seen) > 2
    assert not any(output() is not None for output in seen)


def test_rows_are_freed_while_the_backward_pass_goes_on(monkeypatch):
    layers = {"a": linear(), "b": linear(24, 16), "c": linear(16, 24), "d": linear(24, 16)}
    layers["e"] = linear(16, 24)
    model = model_of(lambda m, x: m.e(m.d(m.c(m.b(m.a(x))).relu())), **layers)
    update, batches = FisherMoments.update, batches_of()
    earlier, held = [], []

    def noted(self, inputs, *rest, **options):
        held.append(sum(rows() is not None for rows in earlier))
        earlier.append(weakref.ref(inputs))
        update(self, inputs, *rest, **options)

    monkeypatch.setattr(FisherMoments, "update", noted)
    run(model, batches, gradients=True)
    assert held == [0] * len(layers) * len(batches)


def test_layers_on_one_input_share_rows_only_where_they_are_centred_alike(monkeypatch):
    layers = {"a": linear(), "b": linear(), "c": linear(bias=False)}
    batches = [(x + 3, labels) for x, labels in batches_of()]
    model = model_of(lambda m, x: m.a(x) * m.b(x) * m.c(x), **layers)
    copies, copy = [], gradient_watch.centred
    monkeypatch.setattr(
        gradient_watch,
        "centred",
        lambda rows, centre, keep: copies.append(bool(centre.any())) or copy(rows, centre, keep),
    )
    shared = run(model, batches, gradients=True).layers
    of_outputs = [True, True, False]  # W z where m ≤ n
    assert sorted(copies) == sorted([True, False, *of_outputs] * len(batches))
    model.body = lambda m, x: m.a(x.clone()) * m.b(x.clone()) * m.c(x.clone())
    apart = run(model, batches, gradients=True).layers
    for name in layers:
        torch.testing.assert_close(shared[name].fisher.near, apart[name].fisher.near)
        torch.testing.assert_close(shared[name].fisher.pulled, apart[name].fisher.pulled)


def test_input_written_in_place_between_two_layers_does_no_harm():
    def body(m, x):
        held = x.clone()
        first = m.a(held)
        held.mul_(2)
        return first * m.b(held)

    model, batches = model_of(body, a=linear(bias=False), b=linear(bias=False)), batches_of()
    found = run(model, batches, gradients=True).layers
    model.body = lambda m, x: m.a(x) * m.b(2 * x)
    expected = run(model, batches, gradients=True).layers
    for name in ("a", "b"):
        torch.testing.assert_close(found[name].fisher.near, expected[name].fisher.near)
        torch.testing.assert_close(found[name].fisher.pulled, expected[name].fisher.pulled)


def test_input_written_in_place_afterwards_does_no_harm():
    def body(m, x):
        y = x.clone()
        out = m.b(m.a(y))
        y.zero_()
        return out

    batches = batches_of()
    written = run(model_of(body, a=linear(), b=linear()), batches, gradients=True)
    plain = run(model_of(lambda m, x: m.b(m.a(x)), a=linear(), b=linear()), batches, gradients=True)
    for name in ("a", "b"):
        one, two = written.layers[name], plain.layers[name]
        torch.testing.assert_close(one.fisher.near, two.fisher.near)
        torch.testing.assert_close(one.inputs.total_covariance, two.inputs.total_covariance)


@pytest.mark.parametrize(("m", "n"), [(16, 24), (24, 16)])
def test_wide_and_tall_layers(m, n):
    model = model_of(
        lambda k, x: k.out(k.mid(k.up(x))),
        up=linear(n, 16),
        mid=linear(m, n, bias=False),
        out=linear(16, m),
    )
    batches = batches_of(tokens=30)  # more positions than the smaller side
    found = run(model, batches, gradients=True, seed=5)
    gradients = sample_gradients(model, "mid", batches, seed=5)
    assert_fisher(found.layers["mid"].fisher, model.mid.weight, gradients)


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.second = nn.Conv2d(16, 20, 3, stride=2, bias=False)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x):
        x = nn.functional.relu(self.first(x), inplace=True)
        return self.head(nn.functional.relu(self.second(x), inplace=True).mean((2, 3)))


def test_convolutions_with_in_place_activations():
    torch.manual_seed(0)
    model = Cnn().double().eval()
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.randn(4, 3, 7, 7, generator=generator).double(), torch.tensor([0, 1, 2, 0]))
        for _ in range(2)
    ]
    found = run(model, batches, gradients=True, seed=2)
    for name in ("first", "second"):
        rows, _ = seen_rows(model, name, batches)
        torch.testing.assert_close(found.layers[name].inputs.mean, rows.mean(0))
        gradients = sample_gradients(model, name, batches, seed=2)
        weight = model.get_submodule(name).weight.flatten(1)
        assert_fisher(found.layers[name].fisher, weight, gradients)


def test_rows_are_centred_where_there_is_a_bias():
    model, batches = model_of(BODIES["plain"], a=linear(), b=linear(bias=False)), batches_of()
    found = run(model, batches, gradients=True)
    rows, _ = seen_rows(model, "a", batches)
    torch.testing.assert_close(found.layers["a"].fisher.centre, rows.mean(0))
    assert not found.layers["b"].fisher.centre.any()


def test_groups_share_one_set_of_moments():
    model = model_of(lambda m, x: m.out(m.q(x) + m.k(x)), q=linear(), k=linear(), out=linear())
    found = run(model, batches_of())
    assert found.layers["q"].inputs is found.layers["k"].inputs
    assert found.layers["out"].inputs is not found.layers["q"].inputs
    assert found.layers["q"].inputs.total == 9 * 3


@pytest.mark.parametrize("gradients", [False, True])
def test_padding_is_left_out(gradients):
    model = model_of(BODIES["plain"], a=linear(), b=linear())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 16, generator=generator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0]] * 4)
    labels = torch.tensor([0, 1, 2, 0])
    candidates = find_candidates(model, x)

    def found(inputs):
        return capture(
            model,
            [(inputs, labels)],
            candidates,
            classes=CLASSES,
            forward=Forward(),
            gradients=gradients,
        )

    other = x.clone()
    other[:, 3:] = 1e3
    padded = found({"x": other, "attention_mask": mask})
    cut = found({"x": x[:, :3], "attention_mask": mask[:, :3]})
    for name in ("a", "b"):
        one, two = padded.layers[name], cut.layers[name]
        torch.testing.assert_close(one.inputs.total_covariance, two.inputs.total_covariance)
        torch.testing.assert_close(one.outputs.means, two.outputs.means)
        torch.testing.assert_close(padded.pooled[name], cut.pooled[name])
        if gradients:
            torch.testing.assert_close(one.fisher.near, two.fisher.near)


def test_pooled_is_the_mean_row_of_each_sample():
    model, batches = model_of(BODIES["plain"], a=linear(), b=linear()), batches_of()
    pooled = run(model, batches).pooled["a"]
    expected = torch.cat([x.mean(1) for x, _ in batches])
    torch.testing.assert_close(pooled, expected.float())


@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict"])
def test_inputs_of_every_form(kind):
    model, batches = model_of(BODIES["plain"], a=linear(), b=linear()), batches_of()
    wrap = {"tensor": lambda x: x, "tuple": lambda x: (x,), "dict": lambda x: {"x": x}}[kind]
    candidates = find_candidates(model, batches[0][0])
    found = capture(
        model,
        [(wrap(x), y) for x, y in batches],
        candidates,
        classes=CLASSES,
        forward=Forward(),
        gradients=True,
    )
    assert found.logits.shape == (9, CLASSES)
    assert found.layers["a"].fisher.energy > 0


def test_seed_decides_the_signs():
    model, batches = model_of(BODIES["plain"], a=linear(), b=linear()), batches_of()
    one, same, other = (
        run(model, batches, gradients=True, seed=seed).layers["a"].fisher.near for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_model_is_left_as_it_was():
    model, batches = model_of(BODIES["plain"], a=linear(), b=linear()), batches_of()
    model.a.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run(model, batches, gradients=True)
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    assert [name for name, needed in required.items() if not needed] == ["a.weight"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_layer_behind_the_head_has_no_fisher():
    class Aside(Model):
        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    model = Aside(BODIES["plain"], a=linear(), b=linear(), aside=linear()).double().eval()
    found = run(model, batches_of(), gradients=True)
    assert found.layers["aside"].fisher.energy == 0
    assert found.layers["aside"].inputs.total == 27


def test_layer_called_without_gradients_is_named():
    def body(m, x):
        with torch.no_grad():
            x = m.a(x)
        return m.b(x)

    model = model_of(body, a=linear(), b=linear())
    with pytest.raises(LayerError, match=r"Layer a: .*no_grad.*--no-gradients"):
        run(model, batches_of(), gradients=True)
    assert run(model, batches_of()).layers["a"].inputs.total == 27
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("gradients", [False, True])
def test_activations_that_are_not_finite_name_the_layer(gradients):
    model = model_of(BODIES["plain"], a=linear(), b=linear())
    with torch.no_grad():
        model.a.weight[0, 0] = torch.nan
    with pytest.raises(LayerError, match=r"Layer a: .*NaN or Inf") as caught:
        run(model, batches_of(), gradients=gradients)
    assert caught.value.layer == "a"
    assert all(p.requires_grad for p in model.parameters())


def test_gradient_that_is_not_finite_names_the_layer():
    model = model_of(lambda m, x: (m.a(x) * 0).abs().sqrt() + x, a=linear(), b=linear())
    with pytest.raises(LayerError, match=r"Layer a: the loss's gradient .* NaN or Inf"):
        run(model, batches_of(), gradients=True)


def test_labels_and_batches_that_do_not_fit():
    model, batches = model_of(BODIES["plain"], a=linear(), b=linear()), batches_of()
    candidates = find_candidates(model, batches[0][0])
    x, labels = batches[0]

    def call(given):
        return capture(model, given, candidates, classes=CLASSES, forward=Forward())

    with pytest.raises(DataError, match="no batch was given"):
        call([])
    with pytest.raises(DataError, match="carry no labels"):
        call([(x, None)])
    with pytest.raises(DataError, match="outside 0…2: found 0 to 3"):
        call([(x, labels + (labels == 2).long())])
    with pytest.raises(DataError, match="found -1"):
        call([(x, labels - 1)])


def test_denormal_gradients_are_scaled():
    model = model_of(BODIES["plain"], a=linear(), b=linear()).float()
    with torch.no_grad():
        model.head.bias[0] = (
            60.0 * TEMPERATURE
        )  # so sure that squares of gradients underflow in float32
    batches = [(x.float(), y) for x, y in batches_of()]
    fisher = run(model, batches, gradients=True).layers["a"].fisher
    assert 0 < fisher.energy < 1e-15
    torch.testing.assert_close(float(fisher.near.trace()), fisher.energy, rtol=1e-4, atol=0)


def test_random_signs_are_fair_independent_and_seeded():
    drawn = random_signs_(torch.ones(101, 999), torch.Generator().manual_seed(0))
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(drawn.mean())) < 0.02
    assert float((drawn[:, 1:] * drawn[:, :-1]).mean().abs()) < 0.02
    assert float((drawn[1:] * drawn[:-1]).mean().abs()) < 0.02
    again = random_signs_(torch.full((101, 999), 2.0), torch.Generator().manual_seed(0))
    assert torch.equal(again, 2 * drawn)
