import inspect

import pytest
import typer
from typer.testing import CliRunner

from compressor.cli.flatten import Only, add_command, flatten
from compressor.cli.options import GROUPS, PANELS, RunSettings
from compressor.settings import DataSettings, MethodSettings, ModelSettings


@pytest.mark.parametrize("settings", GROUPS, ids=lambda settings: settings.__name__)
def test_every_field_of_the_settings_has_an_option(settings):
    assert set(GROUPS[settings].options) == set(settings.model_fields)


def test_the_settings_arrive_as_they_were_typed():
    received = {}

    def work(*, model: ModelSettings, data: DataSettings, method: MethodSettings) -> None:
        received.update(model=model, data=data, method=method)

    app = typer.Typer()
    app.command()(flatten(work))
    words = (
        "net --data d --input-size 1,28,30 --mean 0.5 --std 0.1,0.2,0.3 --num-classes 7 "
        "--device cpu --checkpoint w.pt --calibration 9 --strict --max-length 5 "
        "--budget layers=50% --budget params=0.8 --exclude a.* --exclude b "
        "--no-gradients --rank-multiple 8"
    )
    result = CliRunner().invoke(app, words.split())

    assert result.exit_code == 0, result.output
    assert received["model"].model_dump(mode="json") == {
        "model": "net",
        "checkpoint": "w.pt",
        "factory": None,
        "input_size": [1, 28, 30],
        "mean": [0.5],
        "std": [0.1, 0.2, 0.3],
        "num_classes": 7,
        "trust_remote_code": False,
        "device": "cpu",
    }
    assert received["data"] == DataSettings(data="d", calibration=9, strict=True, max_length=5)
    assert received["method"] == MethodSettings(
        budget=("layers=50%", "params=0.8"),
        exclude=("a.*", "b"),
        gradients=False,
        rank_multiple=8,
    )


def test_defaults_are_those_of_the_settings():
    received = []

    def work(*, data: DataSettings, method: MethodSettings, run: RunSettings) -> None:
        received.extend([data, method, run])

    app = typer.Typer()
    app.command()(flatten(work))
    assert CliRunner().invoke(app, ["--data", "d"]).exit_code == 0
    assert received == [DataSettings(data="d"), MethodSettings(), RunSettings()]


def test_only_offers_but_the_named_fields():
    from typing import Annotated

    def work(*, method: Annotated[MethodSettings, Only(("exclude",))]) -> None:
        raise AssertionError(method)

    assert list(inspect.signature(flatten(work)).parameters) == ["exclude"]


def test_options_stand_in_the_order_of_the_panels():
    def work(*, run: RunSettings, data: DataSettings, model: ModelSettings) -> None:
        raise AssertionError((run, data, model))

    panels = [
        parameter.annotation.__metadata__[0].rich_help_panel or PANELS[0]
        for parameter in inspect.signature(flatten(work)).parameters.values()
    ]
    assert panels == sorted(panels, key=PANELS.index)


def test_brackets_in_examples_are_printed():
    def work(*, run: RunSettings) -> None:
        """Do it.

        Examples:
        work --exclude 'a[0]'
        """

    app = typer.Typer(rich_markup_mode="rich")
    add_command(app, work)
    assert "work --exclude 'a[0]'" in CliRunner().invoke(app, ["--help"]).output
