"""The calibration loss's weight gradients against autograd, sample by sample, in float64."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from compressor.collapse.capture import capture
from compressor.collapse.loss import LossMoments
from compressor.errors import DataError, LayerError
from compressor.forward import Forward
from compressor.layers.search import find_candidates

CPU = torch.device("cpu")


class Tokens(nn.Module):
    """Linear layers on tokens, mean pooled over those that count."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 20)
        self.second = nn.Linear(20, 18, bias=False)
        self.head = nn.Linear(18, 3)

    def forward(self, embeds, attention_mask):
        hidden = self.second(torch.tanh(self.first(embeds)))
        weight = attention_mask[..., None].to(hidden)
        return self.head(torch.tanh((hidden * weight).sum(1) / weight.sum(1)))


class Images(nn.Module):
    """More positions than input features: the other way of summing squares."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, images):
        return self.head(torch.tanh(self.first(images)).mean((2, 3)))


def token_batches():
    generator = torch.Generator().manual_seed(1)
    for size in (5, 4):
        mask = torch.ones(size, 6, dtype=torch.long)
        mask[0, 3:] = 0
        embeds = torch.randn(size, 6, 16, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, 3, (size,), generator=generator)
        yield {"embeds": embeds, "attention_mask": mask}, labels


def image_batches():
    generator = torch.Generator().manual_seed(2)
    for size in (4, 3):
        images = torch.randn(size, 2, 7, 7, generator=generator, dtype=torch.float64)
        yield images, torch.randint(0, 3, (size,), generator=generator)


CASES = {
    "tokens": (Tokens, token_batches, ("first", "second")),
    "images": (Images, image_batches, ("first",)),
}


def case(name):
    torch.manual_seed(0)
    build, batches, layers = CASES[name]
    model = build().double().eval()
    batches = list(batches())
    candidates = find_candidates(model, batches[0][0], include=layers)
    assert tuple(candidates.layers) == layers
    return model, batches, candidates


def gathered(model, batches, candidates, **options):
    return capture(
        model, batches, candidates, classes=3, forward=Forward(), loss=True, **options
    ).layers


def single(inputs, index):
    if isinstance(inputs, dict):
        return {key: value[index : index + 1] for key, value in inputs.items()}
    return inputs[index : index + 1]


def sample_gradients(model, batches, layer, targets=None):
    found = []
    for inputs, labels in batches:
        for index, label in enumerate(labels):
            logits = Forward()(model, single(inputs, index))
            target = label[None] if targets is None else logits.argmax(1)
            loss = functional.cross_entropy(logits, target)
            (gradient,) = torch.autograd.grad(loss, model.get_submodule(layer).weight)
            found.append(gradient.flatten(1))
    return torch.stack(found)


@pytest.mark.parametrize("name", CASES)
def test_moments_are_those_of_each_samples_own_gradient(name):
    model, batches, candidates = case(name)
    for layer, statistics in gathered(model, batches, candidates).items():
        expected = sample_gradients(model, batches, layer)
        torch.testing.assert_close(statistics.loss.mean, expected.mean(0))
        torch.testing.assert_close(statistics.loss.rows, expected.square().mean(0).sum(1))
        assert statistics.fisher is None


def test_clusters_leave_the_models_own_prediction_as_label():
    model, batches, candidates = case("tokens")
    found = gathered(model, batches, candidates, clustered=True)["first"].loss
    expected = sample_gradients(model, batches, "first", targets="own")
    torch.testing.assert_close(found.mean, expected.mean(0))
    given = sample_gradients(model, batches, "first").mean(0)
    assert not torch.allclose(found.mean, given)


def test_input_sizes_are_means_of_absolute_values_without_padding():
    model, batches, candidates = case("tokens")
    real = torch.cat([inputs["embeds"][inputs["attention_mask"] == 1] for inputs, _ in batches])
    found = gathered(model, batches, candidates)["first"].magnitude
    torch.testing.assert_close(found, real.abs().mean(0))


def test_it_leaves_no_trace_on_the_model():
    model, batches, candidates = case("tokens")
    gathered(model, batches, candidates)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_without_being_asked_nothing_is_gathered():
    model, batches, candidates = case("tokens")
    found = capture(model, batches, candidates, classes=3, forward=Forward())
    assert found.layers["first"].loss is None


def test_the_fisher_and_the_loss_exclude_each_other():
    model, batches, candidates = case("tokens")
    with pytest.raises(ValueError, match="not both"):
        gathered(model, batches, candidates, gradients=True)


def test_a_label_beyond_the_models_classes_is_refused():
    model, batches, candidates = case("tokens")
    strange = [(inputs, torch.full_like(labels, 4)) for inputs, labels in batches]
    with pytest.raises(DataError, match="4 is no class of the model"):
        capture(model, strange, candidates, classes=5, forward=Forward(), loss=True)


def test_gradients_that_overflow_name_the_layer():
    model, batches, candidates = case("tokens")
    with torch.no_grad():
        model.head.weight.fill_(1e200)
        model.second.weight.fill_(1e-220)
    huge = [({**inputs, "embeds": inputs["embeds"] * 1e200}, labels) for inputs, labels in batches]
    with pytest.raises(LayerError, match=r"first|second"):
        gathered(model, huge, candidates)


@pytest.mark.parametrize("positions", [1, 5, 30])
def test_both_ways_of_summing_agree_and_scale_is_taken_out(positions):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(4, positions, 6, generator=generator, dtype=torch.float64)
    deltas = torch.randn(4, positions, 5, generator=generator, dtype=torch.float64)
    moments = LossMoments(torch.zeros(5, 6, dtype=torch.float64), home=CPU)
    moments.update(inputs, deltas / 8, scale=8.0)
    expected = torch.einsum("bpm,bpn->bmn", deltas, inputs)
    torch.testing.assert_close(moments.result().mean, expected.mean(0))
    torch.testing.assert_close(moments.result().rows, expected.square().mean(0).sum(1))
