import csv
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from benchmarks import finetune_text, quality, train_resnet
from benchmarks.arms import all_arms, chosen_arms
from benchmarks.controls import CONTROLS, ShuffledLabels, donors_of, permuted
from benchmarks.orange_texts import texts_of
from benchmarks.prepared import DenseCache, Prepared
from benchmarks.resources import metered
from benchmarks.results import Cell, Figures, Results, Row
from benchmarks.tables import controls, markdown, summaries, verdict
from benchmarks.workloads import WORKLOADS, find_paths, variable
from compressor.collapse.metrics import nc1_quotient
from compressor.errors import UsageError
from compressor.methods.method import METHODS
from compressor.methods.recipe import Recipe
from compressor.models import load_model
from compressor.settings import DataSettings, ModelSettings
from tests import language


def cell(**changes):
    known = {
        "workload": "w",
        "method": "nc1",
        "budget": "layers=50%",
        "seed": 0,
        "model": "m",
        "data": "d",
        "settings": "s",
        "code": "c",
    }
    return Cell(**(known | changes))


def row(kl, *, group="default", error=None, **changes):
    figures = Figures(
        layer_share=0.5,
        parameter_share=0.6,
        dense_accuracy=0.9,
        accuracy=0.9 - kl,
        kl=kl,
        agreement=1 - kl,
        choice="fisher",
        seconds={"measure": 1.0, "decompose": 1.0, "plan": 1.0, "factorize": 1.0, "evaluate": 1.0},
        memory=None,
    )
    return Row(cell=cell(**changes), group=group, figures=None if error else figures, error=error)


METHODS_SHOWN = ("nc1", "nc1, no gradients", "svd", "covariance, relative, β=0.5*")
"""Of every sort of arm one, and each control once: arms with gradients cost most of the time."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    out = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quality, "QUICK_METHODS", METHODS_SHOWN)
        patch.setattr(quality, "QUICK_SAMPLES", 96)
        ran = quality.main(["--quick", "--out", str(out)])
        yield out, ran


@pytest.mark.slow
def test_quick_run_finishes_every_cell(quick):
    out, ran = quick
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert ran == len(rows) == len(chosen_arms(METHODS_SHOWN)) == 6
    assert [line["error"] for line in rows] == [None] * len(rows)
    found = {line["cell"]["method"]: line["figures"] for line in rows}
    for figures in found.values():
        assert 0.3 < figures["layer_share"] <= 0.4 < figures["parameter_share"] < 0.5
        assert min(figures["seconds"].values()) >= 0
    assert 0 <= found["nc1"]["kl"] < found["svd"]["kl"]
    assert found["svd"]["accuracy"] < found["nc1"]["accuracy"] <= found["nc1"]["dense_accuracy"]


@pytest.mark.slow
def test_quick_run_writes_table_summary_and_plot(quick):
    out, ran = quick
    page = (out / "quality.md").read_text()
    for method in ("**nc1**", "nc1, no gradients"):
        assert f"\n| {method} |" in page
    for control in CONTROLS:
        assert f"covariance, relative, β=0.5, {control} |" in page
    assert len(json.loads((out / "summary.json").read_text())["rows"]) == ran
    assert "<svg" in (out / "quality.svg").read_text()


@pytest.mark.slow
def test_finished_cells_are_not_run_again(quick):
    out, _ = quick
    path = out / "results.jsonl"
    before = path.read_text()
    assert quality.main(["--quick", "--out", str(out)]) == 0
    assert path.read_text() == before
    # As if the last write had been cut off.
    path.write_text(before[:-20])
    assert quality.main(["--quick", "--out", str(out)]) == 1
    last, again = before.splitlines()[-1], path.read_text().splitlines()[-1]
    assert json.loads(again)["cell"] == json.loads(last)["cell"]
    assert json.loads(again)["figures"]["kl"] == json.loads(last)["figures"]["kl"]


def test_rows_survive_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "results.jsonl"
    Results(path).add(row(0.1))
    path.write_text(path.read_text() + '{"cell": {"wor')
    results = Results(path)
    assert len(results.rows) == 1
    assert "line 2" in results.notes[0]
    results.add(row(0.2, seed=1))
    assert [kept.cell.seed for kept in Results(path).rows] == [0, 1]


@pytest.mark.parametrize("key", ["workload", "method", "budget", "model", "data", "settings"])
def test_a_cell_is_known_by_its_content(tmp_path, key):
    results = Results(tmp_path / "results.jsonl")
    results.add(row(0.1))
    assert results.find(cell()) is not None
    assert results.find(cell(**{key: "other"})) is None
    assert results.find(cell(seed=1)) is None


def test_another_code_version_counts_only_where_asked(tmp_path):
    path = tmp_path / "results.jsonl"
    Results(path).add(row(0.1))
    assert Results(path).find(cell(code="new")) is None
    assert Results(path, any_code=True).find(cell(code="new")) is not None


def test_medians_over_seeds_leave_failures_out():
    rows = [row(kl, seed=seed) for seed, kl in enumerate((0.3, 0.1, 0.2))]
    rows.append(row(0.0, seed=3, error="LayerError: no"))
    (found,) = summaries(rows)
    assert found.kl == 0.2
    assert found.values["points_lost"] == pytest.approx(20)
    assert found.seeds == (0, 1, 2)
    assert found.errors == ("LayerError: no",)


def test_a_later_row_of_a_cell_replaces_the_earlier_one():
    (found,) = summaries([row(0.3), row(0.1, code="new")])
    assert found.kl == 0.1


def test_verdict_compares_with_the_best_published_method():
    rows = [row(0.10), *(row(kl, group="published", method=f"p{kl}") for kl in (0.2, 0.08))]
    text = "\n".join(verdict(summaries(rows), {}))
    assert "1.02 times the best published one in 0 of 1 cells" in text
    assert "| p0.08 | 0.0800 | 1.25 |" in text


@pytest.mark.parametrize(("control_kl", "beaten"), [(0.1, 1), (0.2, 0)])
def test_controls_that_do_as_well_are_told(control_kl, beaten):
    rows = [row(0.1)] + [
        row(control_kl, group="control", method=f"nc1, {control}") for control in CONTROLS
    ]
    assert f"in {beaten} of 1 comparisons" in controls(summaries(rows), {})[0]


def test_every_registered_method_is_an_arm():
    names = [arm.name for arm in all_arms()]
    assert set(METHODS.names()) - set(names) == {"whitened"}  # svd-llm under another name
    assert len(set(names)) == len(names)
    assert names[0] == "nc1"


def test_unknown_methods_are_refused():
    with pytest.raises(UsageError, match=r"Did you mean.*svd"):
        chosen_arms(["svdd"])


@given(st.integers(2, 30), st.integers(0, 1000))
def test_each_layer_gives_to_another(count, seed):
    names = [str(index) for index in range(count)]
    donors = donors_of(names, seed=seed)
    assert sorted(donors.values()) == sorted(names)
    assert all(name != donor for name, donor in donors.items())


def test_shuffled_labels_keep_inputs_and_counts():
    labels = torch.arange(40) % 4
    batches = list(zip(torch.arange(40.0).split(7), labels.split(7), strict=True))
    shuffled = ShuffledLabels(batches, seed=0)
    once, twice = list(shuffled), list(shuffled)
    for (inputs, _), (same, mixed), (_, repeated) in zip(batches, once, twice, strict=True):
        assert torch.equal(inputs, same)
        assert torch.equal(mixed, repeated)
    mixed = torch.cat([part for _, part in once])
    assert torch.equal(mixed.bincount(), labels.bincount())
    assert not torch.equal(mixed, labels)


def test_controls_change_nc1_and_nothing_else():
    workload = WORKLOADS.get("digits-vit")
    model, data = workload.settings({})
    small = data.model_copy(update={"calibration": 128, "limit": 64})
    prepared = Prepared((model, small), seed=0, dense=DenseCache())
    measurement = prepared.measured(["forward"])
    plain = Recipe()
    arms = {
        arm.control: arm
        for arm in all_arms()
        if arm.recipe == Recipe(alpha="nc1", layer_weight="relative")
    }
    donors = donors_of(list(measurement.layers), seed=0)
    exchanged, shuffled = (prepared.under(measurement, arms[control]) for control in CONTROLS)
    assert permuted(measurement).layers.keys() == measurement.layers.keys()
    for name, known in measurement.layers.items():
        for changed in (exchanged, shuffled):
            truncated = changed.decompositions.get(name, plain).decomposition
            assert truncated is measurement.decompositions.get(name, plain).decomposition
        donor = measurement.layers[donors[name]]
        assert nc1_quotient(exchanged.layers[name].outputs) == nc1_quotient(donor.outputs)
        torch.testing.assert_close(
            shuffled.layers[name].inputs.total_covariance,
            known.inputs.total_covariance,
            rtol=1e-5,
            atol=1e-6,
        )
    last = list(measurement.layers)[-1]
    true, false = (nc1_quotient(m.layers[last].outputs) for m in (measurement, shuffled))
    assert false > 4 * true


def test_every_workload_says_what_it_misses(tmp_path):
    for _, workload in WORKLOADS.items():
        for place in workload.places:
            others = {other: tmp_path for other in workload.places if other != place}
            assert variable(place) in workload.missing(others)
            absent = workload.missing({**others, place: tmp_path / "absent"})
            assert "absent does not exist" in absent
        paths = dict.fromkeys(workload.places, tmp_path)
        assert workload.missing(paths) is None
        model, data = workload.settings(paths)
        assert model.model
        assert data.data


def test_paths_come_from_options_before_the_environment():
    found = find_paths(
        ["tiny-imagenet-data=/typed"],
        {variable("tiny-imagenet-data"): "/set", variable("resnet-data"): "/other"},
    )
    assert {name: str(path) for name, path in found.items()} == {
        "tiny-imagenet-data": "/typed",
        "resnet-data": "/other",
    }
    with pytest.raises(UsageError, match="Did you mean"):
        find_paths(["tiny-imagnet-data=/x"], {})


def test_memory_is_the_peak_and_not_what_is_left():
    with metered() as cost:
        # Zeros that were never written take no memory.
        length = len(b"\1" * (64 * 2**20))
    assert cost.seconds > 0
    assert cost.memory is None or cost.memory >= 0.9 * length
    with metered() as nothing:
        pass
    assert nothing.memory is None or nothing.memory < 0.5 * length


def test_tables_of_each_form_are_read(tmp_path):
    orange = tmp_path / "a.tab"
    orange.write_text("Category\tText\nd\tstring\nclass\t\n\nsport\ta goal\n")
    assert finetune_text.read_table(orange) == [("a goal", "sport")]
    table = tmp_path / "b.csv"
    finetune_text.write_table(table, [("a, b", "x")])
    assert finetune_text.read_table(table) == [("a, b", "x")]
    with table.open("w", newline="") as file:
        csv.writer(file).writerow(("first", "second"))
    with pytest.raises(SystemExit, match="expected one of"):
        finetune_text.read_table(table)


@pytest.mark.slow
def test_the_resnet_trains_and_loads(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for label in range(train_resnet.CLASSES):
        folder = tmp_path / "images" / f"n{label:02d}"
        folder.mkdir(parents=True)
        for index in range(5):
            noise = torch.randint(0, 255, (8, 8, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(noise.numpy()).save(folder / f"{index}.png")
    data = tmp_path / "data"
    train_resnet.split_images(tmp_path / "images", data)
    assert len(list(data.glob("train/*/*.png"))) == 4 * len(list(data.glob("test/*/*.png")))
    module, transform = train_resnet.build()
    train_resnet.train(
        module, *train_resnet.load_split(data / "test", transform), epochs=1, minutes=1
    )
    torch.save(module.state_dict(), tmp_path / "resnet.pt")
    workload = WORKLOADS.get("resnet-batchnorm")
    model, _ = workload.settings({"resnet-checkpoint": tmp_path / "resnet.pt", "resnet-data": data})
    loaded = load_model(model)
    assert any(isinstance(part, nn.BatchNorm2d) for part in loaded.module.modules())
    assert loaded.module(loaded.example_inputs(2)).shape == (2, train_resnet.CLASSES)


def test_a_budget_that_cannot_be_read_is_refused_before_any_work(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        quality.main(["--quick", "--budgets", "60%", "--out", str(tmp_path / "out")])
    assert "Expected kind=share" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_language_models_are_compared_by_perplexity(tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(language.text())
    data = DataSettings(data=str(corpus), max_length=24, calibration=8, limit=4)
    model = ModelSettings(model=str(language.save("llama", tmp_path / "model")), device="cpu")
    prepared = Prepared((model, data), seed=0, dense=DenseCache())
    arms = chosen_arms(["svd", "svd-llm", "gfwsvd"])
    measurement = prepared.measured({arm.needs for arm in arms})
    assert prepared.passes["forward"] is prepared.passes["gradients"]  # one pass for both
    rows = []
    for arm in arms:
        figures = prepared.run(measurement, arm, "layers=60%")
        assert figures.dense_perplexity == pytest.approx(math.exp(prepared.dense.loss))
        assert figures.perplexity > 1
        rows.append(Row(cell=cell(method=arm.name), group=arm.group, figures=figures))
    page = markdown(rows, {}, plot="p.svg")
    assert "| KL | ppl × | agreement % |" in page
    ratio = rows[0].figures.perplexity / rows[0].figures.dense_perplexity
    assert f" {ratio:.3f} |" in page


def test_orange_tables_are_read_without_their_header(tmp_path):
    table = tmp_path / "tales.tab"
    table.write_text('Type\tText\nd\tstring\nclass\tinclude=True\na\tOnce "upon\nb\ta time\n')
    assert texts_of(table, "Text") == ['Once "upon', "a time"]
    with pytest.raises(ValueError, match=r"no column 'Content'\. Found"):
        texts_of(table, "Content")
