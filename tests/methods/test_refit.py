"""The sequential refit against ridge regression written out, on the inputs that layers get."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from compressor.collapse.block_capture import capture_blocks
from compressor.collapse.capture import batch_seed, capture, fisher_gradient
from compressor.collapse.row_energy import BatchEnergies
from compressor.collapse.token_capture import capture_tokens
from compressor.errors import LayerError
from compressor.forward import Forward
from compressor.gathering import blocks_of
from compressor.layers.candidates import Candidates, specs_of
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.search import find_candidates
from compressor.layers.surgery import install, structural_copy
from compressor.methods.aside import Aside
from compressor.methods.constraints import weights_within
from compressor.methods.fitted_samples import fitted_samples
from compressor.methods.layer_fit import OUTPUT_DAMPING, LayerFit
from compressor.methods.norms import norm_inputs
from compressor.methods.recipe import Recipe
from compressor.methods.refit import SAMPLES, TOKENS, can_refit, refitted, samples_to_fit
from compressor.methods.sharing import allocate
from compressor.progress import Silent
from compressor.stages import measure
from compressor.tokens import TokenForward
from tests import language
from tests.disks import full_disk
from tests.methods.measured import CLASSES, batches, measured

WEIGHTS = (24 * 40 + 40 * 32) // 3
RIDGE = 0.05


def doubles(count, size=16, seed=0):
    return [(x.double(), labels) for x, labels in batches(count, size, seed)]


@pytest.fixture(scope="module")
def models():
    """The dense classifier in float64 and a truncated copy; its layer ``b`` has no bias."""
    found = measured()
    ranks = allocate(
        found, Recipe(metric="fisher"), weights_within(found.candidates.layers, WEIGHTS), multiple=1
    )
    small, _ = found.factorized(ranks, Recipe(metric="fisher"))
    dense = nn.Sequential(*[structural_copy(found.model)])[0]
    return own(dense).double(), own(small).double(), found.candidates.layers


def own(model):
    """Return a copy with parameters of its own."""
    import copy

    return copy.deepcopy(model)


def refit(dense, small, layers, given, **options):
    noted = energies_of(dense, layers, given, samples=options.pop("samples", 1000))
    energies = [
        BatchEnergies(len(x), None, found) for (x, _), found in zip(given, noted, strict=False)
    ]
    options.setdefault("left_out", 0.0)
    return refitted(dense, small, layers, given, energies, forward=Forward(), **options)


def energies_of(dense, layers, given, *, samples=1000):
    """Return ‖δ‖² of each batch's rows, as the measuring pass notes them."""
    return capture(
        dense,
        given,
        Candidates(layers, {}, 0),
        classes=CLASSES,
        forward=Forward(),
        gradients=True,
        row_samples=samples,
    ).energies


def ridge(features, wanted, weights, start, share):
    """Return X [m, k] that minimises Σ w ‖y − X f‖² + λ ‖X − X₀‖² by stacked least squares."""
    amount = share * (features**2 * weights[:, None]).sum(0).mean()
    root = np.sqrt(weights)[:, None]
    left = np.vstack([features * root, np.sqrt(amount) * np.eye(features.shape[1])])
    right = np.vstack([wanted * root, np.sqrt(amount) * start.T])
    return np.linalg.lstsq(left, right, rcond=None)[0].T


def oracle(layer, rows, wanted, weights, metric=None):
    """Return (U, V, b): first U, then V in the metric by stacked least squares over vec V."""
    up, down = layer.weight.numpy(), layer.down.weight.numpy()
    bias = layer.bias is not None
    means = [weights @ part / weights.sum() if bias else 0 * part[0] for part in (rows, wanted)]
    rows, wanted = rows - means[0], wanted - means[1]
    up = ridge(rows @ down.T, wanted, weights, up, RIDGE)
    # In coordinates R V, R the root of UᵀFU, the metric is the identity and so is the penalty.
    if metric is None:
        metric = np.eye(len(up))
    else:
        metric = metric + OUTPUT_DAMPING * metric.diagonal().mean() * np.eye(len(up))
    root = np.linalg.cholesky(up.T @ metric @ up).T
    goal = np.linalg.solve(root.T, up.T @ metric @ wanted.T).T
    down = np.linalg.solve(root, ridge(rows, goal, weights, root @ down, RIDGE))
    return up, down, means[1] - up @ (down @ means[0]) if bias else None


def agrees(found, expected):
    up, down, bias = expected
    np.testing.assert_allclose(found.weight.detach().numpy(), up, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.down.weight.detach().numpy(), down, rtol=1e-6, atol=1e-8)
    if bias is not None:
        np.testing.assert_allclose(found.bias.detach().numpy(), bias, rtol=1e-6, atol=1e-8)


def test_each_layer_is_the_ridge_solution_of_all_batches_on_the_refitted_prefix(models):
    dense, small, layers = models
    parts = doubles(3, size=24)
    x = torch.cat([x for x, _ in parts])
    root = torch.randn(32, 40, generator=torch.Generator().manual_seed(9)).double()
    metrics = {"b": root @ root.T + torch.eye(32)}
    fitted = refit(dense, small, layers, parts, ridge=RIDGE, metrics=metrics.get)
    drawn = energies_of(dense, layers, parts)
    with torch.no_grad():
        inputs = {"a": (x, x), "b": (torch.relu(dense.a(x)), torch.relu(fitted.a(x)))}
        for name, (given, got) in inputs.items():
            expected = oracle(
                getattr(small, name),
                got.flatten(0, 1).numpy(),
                getattr(dense, name)(given).flatten(0, 1).numpy(),
                torch.cat([found[name][0] for found in drawn]).flatten().numpy(),
                metrics[name].numpy() if name in metrics else None,
            )
            agrees(getattr(fitted, name), expected)


def test_samples_and_rows_that_weigh_little_are_left_out(models):
    """With a share left out: the ridge solution on the rows that are left, by an oracle."""
    dense, small, layers = models
    x, labels = doubles(1, size=64)[0]
    x = x * torch.logspace(0, -3, 64).double()[:, None, None]
    given = [(x[:32], labels[:32]), (x[32:], labels[32:])]
    share = 0.05
    noted = energies_of(dense, layers, given)
    batches = [BatchEnergies(32, None, found) for found in noted]
    taken = fitted_samples(batches, ["a", "b"], share)
    assert any(index is not None for index in taken)
    fitted = refit(dense, small, layers, given, ridge=RIDGE, left_out=share)
    rows, wanted, weights = [], [], []
    for (whole, _), batch, index in zip(given, batches, taken, strict=True):
        part = whole if index is None else whole[index]
        if not len(part):
            continue
        found = batch.of(index).energies["a"][0].flatten()
        order = found.argsort(descending=True)
        count = int((found[order].cumsum(0) < (1 - share) * found.sum()).sum()) + 1
        assert count < len(found)
        kept = order[:count]
        rows.append(part.flatten(0, 1)[kept])
        wanted.append(dense.a(part).flatten(0, 1)[kept].detach())
        weights.append(found[kept])
    with torch.no_grad():
        expected = oracle(small.a, *(torch.cat(part).numpy() for part in (rows, wanted, weights)))
    agrees(fitted.a, expected)
    everything = refit(dense, small, layers, given, ridge=RIDGE)
    assert not torch.equal(fitted.a.weight, everything.a.weight)


def test_batches_that_memory_parts_still_come_nearer_to_the_dense_model(models):
    dense, small, layers = models
    x = torch.cat([x for x, _ in doubles(8, seed=4)])
    errors = []
    for room in (1, 1 << 30):
        model = refit(dense, small, layers, doubles(8, seed=3), activations=room)
        with torch.no_grad():
            errors.append(float((model(x) - dense(x)).square().mean()))
    with torch.no_grad():
        before = float((small(x) - dense(x)).square().mean())
    assert max(errors) < before


@pytest.mark.parametrize("full", [False, True])
def test_sums_that_lie_on_disk_between_groups_change_nothing(models, monkeypatch, full):
    dense, small, layers = models
    kept = refit(dense, small, layers, doubles(6, seed=3), activations=1)
    monkeypatch.setattr("compressor.methods.aside.SMALL", 0)
    taken, notes = [], []
    take = Aside.take
    monkeypatch.setattr(Aside, "take", lambda self, name: (taken.append(name), take(self, name))[1])

    class Noted(Silent):
        def note(self, message):
            notes.append(message)

    with full_disk() if full else nullcontext():
        again = refit(dense, small, layers, doubles(6, seed=3), activations=1, progress=Noted())
    for name, tensor in kept.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert len(taken) == (0 if full else 5 * len(layers))
    assert len(notes) == full


def test_where_moments_are_too_large_the_first_factors_stay(models, monkeypatch):
    dense, small, layers = models
    monkeypatch.setattr("compressor.methods.refit.MOMENTS", 0)
    ((x, labels),) = doubles(1, size=64)
    fitted = refit(dense, small, layers, [(x, labels)], ridge=RIDGE)
    weights = energies_of(dense, layers, [(x, labels)])[0]["a"][0].flatten().numpy()
    with torch.no_grad():
        rows, wanted = x.flatten(0, 1).numpy(), dense.a(x).flatten(0, 1).numpy()
        hidden = rows @ small.a.down.weight.numpy().T
    means = [weights @ part / weights.sum() for part in (hidden, wanted)]
    up = ridge(
        hidden - means[0], wanted - means[1], weights, small.a.weight.detach().numpy(), RIDGE
    )
    agrees(fitted.a, (up, small.a.down.weight.detach().numpy(), means[1] - up @ means[0]))


def test_as_many_first_factors_are_fitted_as_moments_leave_room_for(models, monkeypatch):
    dense, small, layers = models
    sizes = {name: 8 * n * (m + n) for name, (m, n) in ((k, v.shape) for k, v in layers.items())}
    assert sizes["a"] < sizes["b"]
    moved = {}
    for room in (sizes["a"], sizes["a"] + sizes["b"] - 1, sizes["a"] + sizes["b"]):
        monkeypatch.setattr("compressor.methods.refit.MOMENTS", room)
        fitted = refit(dense, small, layers, doubles(1))
        moved[room] = [
            name
            for name in layers
            if not torch.equal(getattr(fitted, name).down.weight, getattr(small, name).down.weight)
        ]
    assert list(moved.values()) == [["a"], ["a"], ["a", "b"]]


def test_batches_of_the_first_layer_add_up_to_one_batch(models):
    dense, small, layers = models
    parts = doubles(4)
    x = torch.cat([x for x, _ in parts])
    several = refit(dense, small, layers, parts, ridge=RIDGE)
    weights = [found["a"][0] for found in energies_of(dense, layers, parts)]
    with torch.no_grad():
        expected = oracle(
            small.a,
            x.flatten(0, 1).numpy(),
            dense.a(x).flatten(0, 1).numpy(),
            torch.cat(weights).flatten().numpy(),
        )
    agrees(several.a, expected)


def test_comes_nearer_to_the_dense_model_and_leaves_both_as_they_were(models):
    dense, small, layers = models
    before = {key: value.clone() for key, value in small.state_dict().items()}
    given = doubles(8, seed=3)
    fitted = refit(dense, small, layers, given)
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    x = torch.cat([x for x, _ in doubles(8, seed=4)])
    with torch.no_grad():
        errors = [float((m(x) - dense(x)).square().mean()) for m in (small, fitted)]
    assert errors[1] < errors[0]


def test_row_energies_are_the_squared_gradients(models):
    dense, _, layers = models
    ((x, labels),) = doubles(1, size=8)
    (found,) = energies_of(dense, layers, [(x, labels)])
    out = {}
    handles = [
        getattr(dense, name).register_forward_hook(
            lambda module, args, output, name=name: out.setdefault(name, output).retain_grad()
        )
        for name in layers
    ]
    logits = dense(x)
    drawn = fisher_gradient(logits, torch.Generator().manual_seed(batch_seed(0, 0)))
    logits.backward(drawn.double())
    for handle in handles:
        handle.remove()
    for name in layers:
        torch.testing.assert_close(found[name][0], out[name].grad.square().sum(-1))
    dense.zero_grad()


def test_padding_does_not_count():
    found = measured()
    small, _ = found.factorized({"a": 5, "b": 4}, Recipe(metric="fisher"))
    rows = torch.randn(2, 3, 24)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    solutions = []
    for junk in (0.0, 100.0):
        inputs = torch.where(mask[..., None] == 0, junk, rows)
        layer = own(small.a)
        fit = LayerFit("a", found.candidates.layers["a"], found.model.a, layer, ridge=0.1)
        with torch.no_grad():
            fit.add(inputs, found.model.a(inputs), 2, torch.ones(2, 3).double(), mask)
            fit.solve()
        solutions.append(layer.weight.detach())
    assert torch.equal(*solutions)
    assert not torch.equal(solutions[0], small.a.weight)


class Cnn(nn.Module):
    """Two convolutions with a BatchNorm each."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32)
        self.second, self.norm2 = nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = torch.relu(self.norm1(self.first(x)))
        return self.head(torch.relu(self.norm2(self.second(x))).mean((2, 3)))


def test_norms_are_corrected_on_the_refitted_prefix():
    torch.manual_seed(0)
    model = Cnn().eval()
    given = [(torch.randn(12, 16, 6, 6), torch.arange(12) % 4) for _ in range(4)]
    found = measure(model, given, heads=("head",))
    recipe = Recipe(metric="fisher", refit=0.1)
    one = [given[0]]
    plain, _ = found.factorized({"first": 6, "second": 5}, Recipe(metric="fisher"))
    small = refit(model, own(plain), found.candidates.layers, one, norms=True)
    dense = norm_inputs(model, one, forward=Forward())[0].moments
    moved = norm_inputs(small, one, forward=Forward())[0].moments
    for name in ("norm1", "norm2"):
        shift = moved[name][0][0] - dense[name][0][0]
        torch.testing.assert_close(
            small.get_submodule(name).running_mean,
            model.get_submodule(name).running_mean + shift,
            rtol=1e-4,
            atol=1e-5,
        )
    made, settled = found.factorized({"first": 6, "second": 5}, recipe)
    assert settled.norm_correction is True
    assert not torch.equal(made.first.weight, plain.first.weight)


class Pooled(nn.Module):
    """A BatchNorm over many pixels, and a layer after they are averaged."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24)
        self.middle, self.head = nn.Linear(24, 24), nn.Linear(24, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x))).mean((2, 3))
        return self.head(torch.relu(self.middle(x)))


@pytest.mark.parametrize(("norms", "groups"), [(False, 1), (True, 4)])
def test_batches_that_wait_at_a_norm_count_for_what_they_hold_there(norms, groups):
    torch.manual_seed(0)
    model = Pooled().eval()
    given = [(torch.randn(12, 3, 8, 8), torch.arange(12) % 4) for _ in range(4)]
    found = measure(model, given, heads=("head",))
    small, _ = found.factorized({"middle": 4}, Recipe(metric="fisher"))
    seen = []

    class Told(Silent):
        def track(self, items, *, description, total):
            seen.append(total)
            yield from items

    middle = 2 * 4 * 12 * (24 + 24)  # bytes of its inputs and outputs, of both models
    layers = found.candidates.layers
    refit(model, own(small), layers, given, norms=norms, activations=4 * middle, progress=Told())
    assert seen == [groups]


def test_what_is_not_finite_names_the_layer(models):
    dense, small, layers = models
    broken = own(small)
    with torch.no_grad():
        broken.a.down.weight[0, 0] = torch.inf
    with pytest.raises(LayerError, match="a"):
        refit(dense, broken, layers, doubles(1))


def test_inputs_that_do_not_vary_change_nothing(models):
    """Centred moments of a constant are rounding errors, which need not even be positive."""
    dense, small, layers = models
    fit = LayerFit("a", layers["a"], dense.a, structural_copy(small).a, ridge=RIDGE)
    ones = torch.ones(24, 24, dtype=torch.float64)
    found = fit._ridged(-1e-24 * ones, 1e-40 * torch.ones(3, 24, dtype=torch.float64))
    assert float(found.abs().max()) < 1e-12


def test_only_as_many_samples_are_fitted_to_as_were_asked_for(models):
    dense, small, layers = models
    given = doubles(6)
    some = refit(dense, small, layers, given, samples=32)  # two batches of 16
    for name, value in refit(dense, small, layers, given[:2]).state_dict().items():
        assert torch.equal(some.state_dict()[name], value)


def token_batches(count=6):
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        ids = torch.randint(6, 23, (2, 12), generator=draw)
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = ids[:, 1:]
        made.append(({"input_ids": ids}, labels))
    return made


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_language_models_come_nearer_to_the_dense_one(family):
    model, given = language.build(family), token_batches()
    if family == "t5":
        given = [({**x, "decoder_input_ids": x["input_ids"]}, labels) for x, labels in given]
    found = measure(model, given, selection=given)
    ranks = {name: max(1, layer.full_rank // 3) for name, layer in found.candidates.layers.items()}
    plain, recipe = found.factorized(ranks, Recipe(metric="fisher"))
    better, _ = found.factorized(ranks, recipe.model_copy(update={"refit": RIDGE}))
    least = 0.9 if family == "llama" else 1.0
    assert found.divergence(better) < least * found.divergence(plain)


def test_what_ends_a_block_is_fitted_to_the_drift_of_the_residual_stream_too():
    model = language.build("llama").double().eval()
    given = [(inputs, None) for inputs, _ in token_batches(3)]
    layers = find_candidates(model, given[0][0]).layers
    small = structural_copy(model)
    install(small, {n: s for n in layers for n, s in specs_of(model, layers[n], 6).items()})
    for name in layers:
        left, values, right = torch.linalg.svd(model.get_submodule(name).weight.detach())
        kind = LAYER_KINDS.get(layers[name].kind)
        kind.fill(small.get_submodule(name), left[:, :6] * values[:6], right[:6], None)
    draws = torch.Generator().manual_seed(0)

    def drawn(ids):
        return torch.rand(ids.shape, generator=draws, dtype=torch.float64)

    energies = [
        BatchEnergies(len(ids), None, {name: [drawn(ids)] for name in layers})
        for ids in (inputs["input_ids"] for inputs, _ in given)
    ]
    fitted = refitted(model, small, layers, given, energies, forward=TokenForward(), ridge=RIDGE)
    block = "model.layers.1"
    streams = {
        "self_attn.o_proj": f"{block}.input_layernorm",
        "mlp.down_proj": f"{block}.post_attention_layernorm",
        "mlp.gate_proj": None,
    }
    for layer, source in streams.items():
        name = f"{block}.{layer}"
        rows = [met(net, [name, *([source] if source else [])], given) for net in (model, fitted)]
        drift = rows[0][source] - rows[1][source] if source else 0.0
        weights = torch.cat([batch.energies[name][0].flatten() for batch in energies])
        weights = weights.sqrt().numpy()
        with torch.no_grad():
            start, low = small.get_submodule(name), fitted.get_submodule(name)
            wanted = (model.get_submodule(name)(rows[0][name]) + drift).numpy()
            up, down = start.weight.numpy(), start.down.weight.numpy()
            got = rows[1][name].numpy()
            if source:  # what tells the drift may lie in any direction
                expected = oracle(start, got, wanted, weights)
            else:
                expected = ridge(got @ down.T, wanted, weights, up, RIDGE), down, None
            agrees(low, expected)


def met(model, names, given):
    """Return the rows [N, n] that modules of a model are given."""
    found = {name: [] for name in names}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: found[name].append(args[0].flatten(0, 1))
        )
        for name in names
    ]
    with torch.no_grad():
        for inputs, _ in given:
            model(**inputs)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in found.items()}


def test_row_energies_of_tokens_are_those_of_drawn_gradients():
    model, given = language.build("llama"), token_batches(1)
    ((inputs, labels),) = given
    name = "model.layers.0.mlp.down_proj"
    candidates = find_candidates(model, inputs)
    chain = blocks_of(model, TokenForward(), inputs)
    passes = [
        partial(capture_tokens, model, given, candidates),
        partial(capture_blocks, model, given, candidates, chain=chain),
    ]
    whole, blockwise = (
        run(forward=TokenForward(), gradients=True, seed=0, row_samples=1).energies[0]
        for run in passes
    )
    assert list(whole) == list(blockwise) == list(candidates.layers)
    for layer in candidates.layers:
        torch.testing.assert_close(whole[layer], blockwise[layer], rtol=1e-5, atol=0)
    met = []
    hook = model.get_submodule(name).register_forward_hook(lambda m, args, out: met.append(out))
    logits = model(**inputs).logits
    hook.remove()
    predicted = labels >= 0
    drawn = torch.zeros_like(logits)
    drawn[predicted] = fisher_gradient(
        logits[predicted], torch.Generator().manual_seed(0), temperature=1.0
    )
    (delta,) = torch.autograd.grad(logits, met[0], drawn)
    torch.testing.assert_close(whole[name][0].float(), delta.square().sum(-1), rtol=1e-3, atol=1e-9)


def test_of_long_windows_fewer_are_fitted_to():
    assert samples_to_fit(doubles(1)) == SAMPLES
    assert samples_to_fit([(torch.zeros(2, 512), torch.zeros(2, 512))]) == TOKENS // 512
    assert samples_to_fit([(torch.zeros(2, 1), torch.zeros(2, 2 * TOKENS))]) == 1


def test_experts_are_not_refitted():
    model = language.build("llama")
    layers = find_candidates(model, token_batches(1)[0][0]).layers
    assert can_refit(layers)
    name = next(iter(layers))
    assert not can_refit({**layers, name: replace(layers[name], kind="expert")})
