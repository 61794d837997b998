"""A local task of the lm-evaluation-harness, offline, on dense and compressed models."""

import json
import math

import pytest
import torch

from compressor.cli import main
from compressor.errors import DataError, ModelError, UsageError
from compressor.evaluation.harness import parse_tasks, run_tasks
from compressor.models import load_model
from compressor.pipeline import compress_model, evaluate_model
from compressor.progress import SILENT
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings
from tests import language

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

TASK = """
task: pets
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "the {{{{pet}}}} sees the"
doc_to_choice: ["cat", "dog", "house"]
doc_to_target: answer
metric_list:
  - metric: acc
metadata:
  version: 2.0
"""
ROWS = [{"pet": pet, "answer": answer} for answer, pet in enumerate(("dog", "cat", "tree"))]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tasks")
    data = directory / "pets.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    file = directory / "pets.yaml"
    file.write_text(TASK.format(data=data))
    return file


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return language.save("llama", tmp_path_factory.mktemp("models") / "llama")


def by_hand(module, tokenizer):
    """Return the share of rows whose right word has the largest log-probability."""
    right = 0
    for row in ROWS:
        ids = tokenizer(f"the {row['pet']} sees the", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            scores = module(input_ids=ids).logits[0, -1]
        choices = [scores[tokenizer.convert_tokens_to_ids(w)] for w in ("cat", "dog", "house")]
        right += int(torch.stack(choices).argmax() == row["answer"])
    return right / len(ROWS)


def test_the_harness_scores_as_by_hand(task, dense):
    loaded = load_model(ModelSettings(model=str(dense)))
    (found,) = run_tasks(loaded, [str(task)])
    assert found.task == "pets"
    assert found.samples == 3
    assert found.metrics["acc"] == pytest.approx(by_hand(loaded.module, loaded.tokenizer))


def test_dense_and_compressed_from_the_command_line(task, dense, tmp_path, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(language.text())
    compress_model(
        CompressSettings(
            model=ModelSettings(model=str(dense)),
            data=DataSettings(data=str(corpus), max_length=24, calibration=8, limit=4),
            method=MethodSettings(method="svd", budget=("layers=60%",)),
            out=tmp_path / "small",
        ),
        progress=SILENT,
    )
    capsys.readouterr()
    for model in (dense, tmp_path / "small"):
        assert main(["evaluate", str(model), "--eval", f"lm-eval:{task}", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert [scored["task"] for scored in report["tasks"]] == ["pets"]
        assert 0 <= report["tasks"][0]["metrics"]["acc"] <= 1
        assert report["samples"] is None
    assert main(["evaluate", str(dense), "--eval", f"lm-eval:{task}"]) == 0
    assert "pets: acc " in capsys.readouterr().out


def test_data_and_tasks_together(task, dense, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(language.text())
    report = evaluate_model(
        ModelSettings(model=str(dense)),
        DataSettings(data=str(corpus), max_length=24, limit=2),
        evaluations=[f"lm-eval:{task}"],
        seed=0,
        progress=SILENT,
    )
    assert math.isfinite(report.perplexity)
    assert report.tasks[0].samples == 2  # the limit is the task's too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arc_easy", "Expected lm-eval:TASK"),
        ("lm-eval:", "Expected lm-eval:TASK"),
        ("lm-eval:missing.yaml", "does not exist"),
    ],
)
def test_what_is_no_task_is_refused_before_anything_is_loaded(text, message):
    with pytest.raises(UsageError, match=message):
        parse_tasks([text])


def test_a_file_that_names_no_task_is_refused(dense, tmp_path):
    file = tmp_path / "nameless.yaml"
    file.write_text("dataset_path: json\n")
    with pytest.raises(UsageError, match="names no task"):
        run_tasks(load_model(ModelSettings(model=str(dense))), [str(file)])


def test_a_task_whose_data_is_missing_says_so(dense, tmp_path):
    file = tmp_path / "pets.yaml"
    file.write_text(TASK.format(data=tmp_path / "nowhere.jsonl"))
    with pytest.raises(DataError, match="pets cannot be run"):
        run_tasks(load_model(ModelSettings(model=str(dense))), [str(file)])


def test_a_model_that_writes_no_text_is_refused(task, tmp_path):
    loaded = load_model(ModelSettings(model=str(language.save("bert", tmp_path / "bert"))))
    with pytest.raises(ModelError, match="masked tokens"):
        run_tasks(loaded, [str(task)])


def test_nothing_to_evaluate_on_is_a_usage_error(dense, capsys):
    assert main(["evaluate", str(dense)]) == 2
    assert "--eval lm-eval:TASK" in capsys.readouterr().err
