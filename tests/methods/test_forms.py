"""Channel or spatial form: one scale of losses, one knapsack over form and rank, exact replay."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import compressor
from compressor.collapse.spill import SpillDirectory, SpilledLayers
from compressor.collapse.state import state_of, statistics_of
from compressor.errors import LayerError, UsageError
from compressor.evaluation.flops import count_flops
from compressor.layers.kinds import LAYER_KINDS
from compressor.layers.lowrank import LowRankConv2d, LowRankSpatialConv2d, lowrank_layers
from compressor.layers.search import find_candidates
from compressor.methods.allocation import ALLOCATORS, Options
from compressor.methods.budget import parse_budget
from compressor.methods.decompose import Decomposition, weighted_error
from compressor.methods.factorize import Decompositions, truncated_separably
from compressor.methods.forms import chosen_forms, most_frequent, union
from compressor.methods.metrics import METRICS, Metric
from compressor.methods.plan import read_plan
from compressor.methods.recipe import Recipe
from compressor.methods.separable import SeparableDecomposition, decompose_separable, ridged
from compressor.stages import factorize, measure, plan, subject_of

SPATIAL = "conv2d-spatial"


class Net(nn.Module):
    """Kernels of several shapes; ``wide`` and ``across`` are nearly separable, ``point`` never."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.across = nn.Conv2d(16, 24, (3, 5), stride=2, padding=(1, 2), bias=False)
        self.point = nn.Conv2d(24, 16, 1)
        self.last = nn.Conv2d(16, 20, 3, padding="same", padding_mode="replicate")
        self.head = nn.Linear(20, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.across(torch.relu(self.norm(self.wide(images)))))
        hidden = torch.relu(self.last(torch.relu(self.point(hidden))))
        return self.head(hidden.mean((2, 3)))


@cache
def model() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():  # across has few vertical filters, each with its own horizontal ones
        filters, upright = torch.randn(4, 16, 3), torch.randn(24, 4, 5)
        net.across.weight.copy_(torch.einsum("mrb,rca->mcab", upright, filters) / 20)
        net.across.weight += 0.002 * torch.randn_like(net.across.weight)
    return net.eval()


@cache
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(64) % 4
    images = torch.randn(64, 3, 10, 12, generator=generator)
    images = images + torch.nn.functional.avg_pool2d(3 * images, 3, 1, 1)  # neighbours are alike
    images[:, 0] += labels[:, None, None]
    return list(zip(images.split(16), labels.split(16), strict=True))


@cache
def found(conv_form: str | None = "auto", method: str = "nc1"):
    return measure(model(), batches(), conv_form=conv_form, method=method, include=["wide"])


def test_kernels_over_both_axes_have_two_forms():
    layers = found().candidates.layers
    assert {name for name, layer in layers.items() if layer.others} == {"wide", "across", "last"}
    spatial = layers["across"].in_form(SPATIAL)
    assert (spatial.kind, spatial.folded, spatial.taps) == (SPATIAL, (24 * 5, 16 * 3), 5)
    assert spatial.shape == layers["across"].shape == (24, 16 * 15)
    assert spatial.rank_cost == 24 * 5 + 16 * 3
    assert spatial.full_rank == 48
    assert spatial.break_even_rank == (24 * 240 - 1) // 168
    assert spatial.in_form("conv2d") == layers["across"]
    with pytest.raises(KeyError):
        layers["point"].in_form(SPATIAL)


@pytest.mark.parametrize(
    ("method", "both"), [("nc1", True), ("measured-kl", True), ("gfwsvd", False), ("svd", False)]
)
def test_published_rules_keep_channel_form_unless_asked(method, both):
    layers = found(None, method).candidates.layers
    assert any(layer.folds for layer in layers.values()) == both
    made = plan(found(None), "layers=40%", method=method)  # measured for another method
    assert (made.kinds["across"] == SPATIAL) == both


def test_one_form_alone_where_it_was_asked_for():
    assert not any(layer.folds for layer in found("channel").candidates.layers.values())
    kinds = {name: layer.kind for name, layer in found("spatial").candidates.layers.items()}
    assert kinds == {"wide": SPATIAL, "across": SPATIAL, "point": "conv2d", "last": SPATIAL}


@pytest.mark.parametrize("metric", METRICS.names())
@pytest.mark.parametrize("name", ["wide", "across", "last"])
def test_losses_of_both_forms_are_of_one_metric(metric, name):
    measured = found(method="fwsvd") if metric == "row_fisher" else found()
    recipe = Recipe(metric=metric)
    weight = LAYER_KINDS.get("conv2d").matrix(model().get_submodule(name)).double()
    sides = METRICS.get(metric).sides(weight, measured.layers[name], recipe)
    for kind in ("conv2d", SPATIAL):
        truncation = measured.in_forms({name: kind}).decompositions.get(name, recipe)
        assert isinstance(truncation.decomposition, SeparableDecomposition) == (kind == SPATIAL)
        tail = truncation.decomposition.tail()
        for rank in (1, 3):
            up, down = truncation.decomposition.factors(rank)
            inputs = sides.inputs
            if kind == SPATIAL and inputs is not None:
                ridge = 0.01 * inputs.diagonal().mean()
                inputs = inputs + ridge * torch.eye(len(inputs), dtype=inputs.dtype)
            lost = weighted_error(weight - up @ down, inputs, sides.outputs)
            assert lost == pytest.approx(float(tail[rank]), rel=2e-3, abs=2e-5 * float(tail[0]))


def test_few_rows_do_not_lead_the_spatial_form_astray():
    """Of 288 directions 64 rows show few: what is lost on other rows."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(32, 288, generator=draw, dtype=torch.float64)
    mixing = torch.randn(288, 288, generator=draw, dtype=torch.float64) / 17
    rows, others = (
        torch.randn(count, 288, generator=draw, dtype=torch.float64) @ mixing
        for count in (64, 4096)
    )
    gram, truth = rows.T @ rows / len(rows), others.T @ others / len(others)
    lost = []
    for metric in (ridged(gram), gram):
        up, down = decompose_separable(weight, 3, metric).factors(20)
        lost.append(weighted_error(weight - up @ down, truth, None))
    assert lost[0] < lost[1] / 2


def test_a_metric_without_sides_has_no_spatial_form(monkeypatch):
    members = {**METRICS._members, "mine": Metric(METRICS.get("identity").truncate, "weights")}
    monkeypatch.setattr(METRICS, "_members", members)
    layer = found().candidates.layers["last"].in_form(SPATIAL)
    with pytest.raises(ValueError, match="'mine' knows no spatial form"):
        truncated_separably("mine", layer)


def test_statistics_of_channel_form_do_not_do():
    both = found().in_forms({"last": SPATIAL}).candidates
    spatial = replace(found("channel"), candidates=both)
    with pytest.raises(LayerError, match=r"Layer last: .*--conv-form auto or spatial"):
        spatial.decompositions.get("last", Recipe(metric="fisher"))


def test_union_is_the_lower_envelope():
    def option(weights, losses):
        weights = np.array(weights, float)
        return Options(np.arange(len(weights)), weights, weights[None], np.array(losses, float))

    first = option([10, 20, 30, 100], [9, 5, 4, 0])
    second = option([12, 18, 40, 100], [9, 4.5, 1, 0])
    both, kinds = union([first, second], ["a", "b"])
    assert both.weights.tolist() == [10, 18, 30, 40, 100]
    assert both.losses.tolist() == [9, 4.5, 4, 1, 0]
    assert kinds == ["a", "b", "a", "b", ""]
    assert both.ranks.tolist() == [0, 1, 2, 3, 4]
    alone, kinds = union([first], ["a", "b"])
    assert (alone.losses.tolist(), kinds) == ([9, 5, 4, 0], ["a", "a", "a", ""])


@pytest.mark.parametrize("share", [0.15, 0.3, 0.6])
def test_form_and_rank_are_the_best_of_all(share):
    """The knapsack over both forms against every choice of forms, each shared out exactly."""
    measured, recipe = found(), Recipe(metric="fisher")
    budgets = [parse_budget(f"layers={share}")]
    subject = subject_of(measured)

    def best_loss(kinds):
        side = measured.in_forms(kinds)
        from compressor.methods.allocation import options, total_loss
        from compressor.methods.constraints import weights_within

        limit = int(share * side.candidates.layer_parameters)
        layers = side.candidates.layers
        constraints = weights_within(layers, limit)
        each = {
            name: options(
                layer,
                side.decompositions.get(name, recipe).decomposition.tail().numpy(),
                constraints,
            )
            for name, layer in layers.items()
        }
        return total_loss(each, ALLOCATORS.get("exact")(each, limit))

    names = ["wide", "across", "last"]
    every = [
        dict(zip(names, kinds, strict=True)) for kinds in product(("conv2d", SPATIAL), repeat=3)
    ]
    chosen = chosen_forms(measured, subject, budgets, multiple=1)
    assert set(chosen) == set(names)
    assert chosen["across"] == SPATIAL  # its kernels are separable, as built
    assert best_loss(chosen) <= 1.02 * min(best_loss(kinds) for kinds in every)


def test_of_forms_that_are_equally_frequent_the_first_is_taken():
    assert most_frequent([SPATIAL, "conv2d", "conv2d", SPATIAL]) == SPATIAL
    assert most_frequent(["conv2d", SPATIAL]) == "conv2d"
    assert most_frequent(["conv2d", SPATIAL, SPATIAL]) == SPATIAL


def test_decompositions_on_disk_know_their_form():
    candidates = found().candidates
    spilled = SpilledLayers(SpillDirectory(torch.device("cpu")), candidates)
    spilled.add(found().statistics.layers)
    made, recipe = Decompositions(model(), candidates.layers, spilled), Recipe(metric="fisher")
    first = made.get("across", recipe).decomposition
    other = made.of(candidates.in_forms({"across": SPATIAL}).layers)
    second = other.get("across", recipe).decomposition
    assert isinstance(first, Decomposition)
    assert isinstance(second, SeparableDecomposition)


def test_a_plan_replays_its_forms_exactly(tmp_path):
    made = plan(found(), "layers=40%")
    assert made.kinds["across"] == SPATIAL
    small = factorize(model(), made)
    assert isinstance(small.across, LowRankSpatialConv2d)
    made.write(tmp_path / "plan.json")
    again = read_plan(tmp_path / "plan.json")
    assert again.conv_form == "auto"
    replayed = factorize(model(), again, measurement=found())
    for (name, ours), theirs in zip(
        small.state_dict().items(), replayed.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name


def test_an_edited_form_is_carried_out(tmp_path):
    made = json.loads(plan(found(), "layers=40%").model_dump_json())
    made["layers"]["across"].update(kind="conv2d", rank=3, break_even_rank=21)
    (tmp_path / "plan.json").write_text(json.dumps(made))
    small = factorize(model(), read_plan(tmp_path / "plan.json"), measurement=found())
    assert isinstance(small.across, LowRankConv2d)
    assert small.across.rank == 3


def test_a_form_that_a_layer_has_not_is_refused():
    made = plan(found(), "layers=40%")
    layers = {**made.layers, "point": made.layers["point"].model_copy(update={"kind": SPATIAL})}
    wrong = made.model_copy(update={"layers": layers})
    with pytest.raises(UsageError, match="'point': its kind is 'conv2d-spatial' in the plan"):
        factorize(model(), wrong, measurement=found())
    with pytest.raises(UsageError, match=r"'across'.*and 'conv2d' in the model"):
        factorize(model(), made, measurement=found("channel"))


@pytest.mark.parametrize("budget", ["layers=40%", "params=60%", "flops=50%", "size=70%"])
def test_budgets_count_the_form_that_was_taken(budget):
    measured = found()
    made = plan(measured, budget)
    small = factorize(model(), made)
    dense = model()
    counts = {
        "layers": lambda net: (
            sum(
                layer.cost(made.ranks[name])
                for name, layer in made.measurement.candidates.layers.items()
            )
            if net is small
            else measured.candidates.layer_parameters
        ),
        "params": lambda net: sum(p.numel() for p in net.parameters()),
        "flops": lambda net: count_flops(net, torch.randn(1, 3, 10, 12))[0],
        "size": lambda net: 4 * sum(t.numel() for t in net.state_dict().values()),
    }
    kind = budget.partition("=")[0]
    share = counts[kind](small) / counts[kind](dense)
    assert share <= parse_budget(budget).amount + 0.005


def test_flops_of_a_rank_are_those_that_torch_counts():
    layers = found("spatial").candidates.layers
    dense, inputs = model(), torch.randn(1, 3, 10, 12)
    _, by_module = count_flops(dense, inputs)
    small, _ = found("spatial").factorized(
        {**{name: layer.full_rank for name, layer in layers.items()}, "across": 4},
        Recipe(metric="fisher", norm_correction=False),
    )
    assert set(lowrank_layers(small)) == {"across"}
    _, after = count_flops(small, inputs)
    layer = layers["across"]
    predicted = 4 * layer.rank_work * by_module["across"] / layer.parameters
    taken = sum(count for name, count in after.items() if name.startswith("across"))
    assert taken in (
        pytest.approx(predicted),
        pytest.approx(predicted + after.get("across.down", 0)),
    )


def test_a_refit_comes_nearer_to_the_dense_model_and_keeps_the_form():
    measured = found("spatial")
    ranks = {"wide": 4, "across": 4, "point": 6, "last": 6}
    recipe = Recipe(metric="fisher", norm_correction=False)
    plain, _ = measured.factorized(ranks, recipe)
    fitted, _ = measured.factorized(ranks, recipe.model_copy(update={"refit": 0.05}))
    assert isinstance(fitted.across, LowRankSpatialConv2d)
    assert not torch.equal(fitted.across.down.weight, plain.across.down.weight)

    def lost(small: nn.Module) -> float:
        with torch.no_grad():
            return sum(
                float((small(x).log_softmax(1) - model()(x).log_softmax(1)).square().sum())
                for x, _ in measured.calibration
            )

    assert lost(fitted) < lost(plain)


def test_statistics_with_the_larger_factor_survive_a_file():
    measured = found()
    again = statistics_of(
        state_of(measured.statistics), measured.candidates, torch.device("cpu")
    ).layers["last"]
    before = measured.layers["last"]
    assert torch.equal(again.fisher.far, before.fisher.far)
    assert torch.equal(again.fisher.by_row.far, before.fisher.by_row.far)
    assert measured.layers["point"].fisher.far is None


@pytest.mark.parametrize("method", ["svd", "svd-energy", "drone", "gfwsvd", "balf", "evbmf"])
def test_published_rules_run_in_spatial_form_where_it_is_asked_for(method):
    small = compressor.compress(
        model(), batches(), "layers=50%", method=method, conv_form="spatial"
    ).model
    kinds = {type(layer) for layer in lowrank_layers(small).values()}
    assert kinds <= {LowRankSpatialConv2d, LowRankConv2d}
    assert LowRankSpatialConv2d in kinds


def test_a_rule_of_singular_components_refuses_the_spatial_form():
    with pytest.raises(UsageError, match=r"zs-svd .* --conv-form channel"):
        compressor.compress(model(), batches(), "layers=50%", method="zs-svd", conv_form="spatial")


def test_grouped_kernels_and_refused_ones():
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    grouped = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 16, 3), *pooled)
    layers = find_candidates(grouped, torch.randn(2, 32, 8, 8), include=["1"], conv_form="auto")
    assert set(layers.layers) == {"1"}
    assert layers.left_dense["0"].startswith("depthwise")
