"""The pass over windows of tokens, against naive sums over positions."""

import pytest
import torch

from compressor.collapse.capture import fisher_gradient
from compressor.collapse.token_capture import FrequentTokens, capture_tokens
from compressor.errors import DataError
from compressor.layers.search import find_candidates
from compressor.tokens import TokenForward
from tests import language

NAME = "model.layers.0.self_attn.v_proj"


def batches():
    draw = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        ids = torch.randint(6, 23, (2, 10), generator=draw)
        labels = torch.full_like(ids, -100)
        labels[:, :-1] = ids[:, 1:]
        made.append(({"input_ids": ids}, labels))
    return made


@pytest.fixture(scope="module")
def model():
    return language.build("llama")


@pytest.fixture(scope="module")
def candidates(model):
    return find_candidates(model, batches()[0][0])


def test_the_most_frequent_tokens_are_classes_and_all_others_the_rest():
    labels = torch.tensor([[5, 5, 5, 7, 7, 2, -100]])
    frequent = FrequentTokens([(labels, labels)], most=2)
    assert frequent.tokens.tolist() == [5, 7]
    assert frequent.of(labels).tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert frequent.covered == pytest.approx(5 / 6)


def test_batches_without_labels_are_refused():
    with pytest.raises(DataError, match="tokens to predict"):
        FrequentTokens([(torch.zeros(1, 3), None)])


def test_collapse_is_of_frequent_tokens_and_covariance_of_all_rows(model, candidates, monkeypatch):
    monkeypatch.setattr("compressor.collapse.token_capture.FREQUENT", 3)
    found = capture_tokens(model, batches(), candidates, forward=TokenForward())
    layer = found.layers[NAME]
    rows = []
    hook = model.get_submodule(NAME).register_forward_hook(
        lambda module, args, output: rows.append(args[0].flatten(0, 1))
    )
    with torch.no_grad():
        for inputs, _ in batches():
            model(**inputs)
    hook.remove()
    rows = torch.cat(rows).double()
    centred = rows - rows.mean(0)
    torch.testing.assert_close(
        layer.inputs.total_covariance, centred.T @ centred / len(rows), rtol=1e-5, atol=1e-8
    )
    assert layer.rest
    assert len(layer.input_classes.counts) == len(layer.inputs.counts) - 1
    assert layer.inputs.total == len(rows)
    assert layer.input_classes.total < layer.inputs.total


def test_the_fisher_takes_every_position_for_a_sample(model, candidates):
    found = capture_tokens(
        model, batches(), candidates, forward=TokenForward(), gradients=True, seed=3
    ).layers[NAME]
    draws = torch.Generator().manual_seed(3)
    near, pulled, count = 0, 0, 0
    weight = model.get_submodule(NAME).weight.detach().double()
    for inputs, labels in batches():
        met = []
        hook = model.get_submodule(NAME).register_forward_hook(
            lambda module, args, output, met=met: met.extend((args[0], output))
        )
        logits = model(**inputs).logits
        hook.remove()
        drawn = torch.zeros_like(logits)
        drawn[labels >= 0] = fisher_gradient(logits[labels >= 0], draws, temperature=1.0)
        (delta,) = torch.autograd.grad(logits, met[1], drawn)
        for z, d in zip(met[0].flatten(0, 1).double(), delta.flatten(0, 1).double(), strict=True):
            near = near + (z @ z) * torch.outer(d, d)
            pulled = pulled + (d @ d) * torch.outer(weight @ z, weight @ z)
            count += 1
    torch.testing.assert_close(found.fisher.near, (near / count).detach(), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found.fisher.pulled, (pulled / count).detach(), rtol=1e-4, atol=1e-9)


def test_an_encoders_rows_belong_to_no_class():
    model = language.build("t5")
    ids = batches()[0][0]["input_ids"]
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :7]}
    found = capture_tokens(
        model,
        [(inputs, ids[:, 1:8])],
        find_candidates(model, inputs),
        forward=TokenForward(),
        gradients=True,
    )
    encoder = found.layers["encoder.block.0.layer.0.SelfAttention.q"]
    decoder = found.layers["decoder.block.0.layer.0.SelfAttention.q"]
    assert encoder.input_classes.total == 0
    assert decoder.input_classes.total == 14
    assert encoder.fisher.energy > 0
