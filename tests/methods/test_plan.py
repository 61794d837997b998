"""plan.json: round trip, edits, and what does not fit."""

from __future__ import annotations

import json

import pytest
import torch

from compressor.errors import UsageError
from compressor.methods.plan import Plan, check_against, read_plan
from compressor.stages import factorize, plan
from tests.methods.measured import measured, trained


@pytest.fixture
def made() -> Plan:
    return plan(measured(), "layers=50%")


@pytest.fixture
def path(made, tmp_path):
    made.write(tmp_path / "plan.json")
    return tmp_path / "plan.json"


def edited(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def test_round_trip(made, path):
    again = read_plan(path)
    assert again.model_dump() == made.model_dump()
    assert again.ranks == made.ranks
    assert again.measurement is None
    assert made.measurement is measured()


def test_replay_gives_identical_weights(made, path):
    first = factorize(trained(), made).state_dict()
    again = factorize(trained(), read_plan(path), measurement=measured()).state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_edited_ranks_are_carried_out(path):
    edited(path, lambda content: content["layers"]["a"].update(rank=2))
    assert factorize(trained(), read_plan(path), measurement=measured()).a.rank == 2


def test_layers_left_out_stay_dense(path):
    from compressor.methods.outcome import layer_figures

    edited(path, lambda content: content["layers"].pop("a"))
    again = read_plan(path)
    small = factorize(trained(), again, measurement=measured())
    assert type(small.a) is torch.nn.Linear
    figures = {figure.name: figure for figure in layer_figures(measured(), again.ranks, small)}
    assert figures["a"].parameters == 24 * 40
    assert figures["a"].energy_lost == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda c: c["layers"].update(bb=c["layers"].pop("b")),
            UsageError,
            "names layer 'bb', which .* Did you mean 'b'",
        ),
        (
            lambda c: c["layers"].update(head=c["layers"].pop("b")),
            UsageError,
            "left dense: classifier head",
        ),
        (
            lambda c: c["layers"]["a"].update(shape=[40, 25]),
            UsageError,
            r"'a': its shape is \(40, 25\) in the plan and \(40, 24\)",
        ),
        (
            lambda c: c["layers"]["a"].update(rank=25),
            UsageError,
            "'a': rank 25 is above its full rank, 24",
        ),
        (lambda c: c["layers"]["a"].update(kind="conv2d"), UsageError, "'a': its kind is 'conv2d'"),
    ],
)
def test_plans_that_do_not_fit_the_model(path, change, error, message):
    with pytest.raises(error, match=message):
        check_against(read_plan(edited(path, change)), measured().candidates)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda c: c["layers"]["a"].update(rank=0), "layers.a.rank"),
        (lambda c: c["layers"]["a"].update(rnak=3), "layers.a.rnak"),
        (lambda c: c.update(version=2), "version"),
        (lambda c: c.pop("recipe"), "recipe"),
        (lambda c: c["recipe"].update(alpha=-1), "recipe.alpha"),
    ],
)
def test_files_that_do_not_follow_the_schema(path, change, key):
    with pytest.raises(UsageError, match=f"key {key}"):
        read_plan(edited(path, change))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="No such plan"):
        read_plan(tmp_path / "none.json")
    with pytest.raises(UsageError, match="Cannot read"):
        read_plan(tmp_path)
    (tmp_path / "latin.json").write_bytes(b"\xff{}")
    with pytest.raises(UsageError, match=r"Cannot read .* UTF-8"):
        read_plan(tmp_path / "latin.json")
    (tmp_path / "broken.json").write_text('{\n"version": 1,,\n}')
    with pytest.raises(UsageError, match=r"not valid JSON: .* in line 2"):
        read_plan(tmp_path / "broken.json")


def test_a_plan_needs_its_model_and_measurement(made, path):
    with pytest.raises(UsageError, match="carries no statistics"):
        factorize(trained(), read_plan(path))
    with pytest.raises(UsageError, match="another model object"):
        factorize(torch.nn.Linear(2, 2), made)
