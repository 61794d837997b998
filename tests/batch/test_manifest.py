import pytest

from compressor.batch.manifest import read_manifest
from compressor.errors import UsageError


@pytest.fixture
def manifest(tmp_path):
    """Return a function that writes a manifest beside a model, data and weights, and reads it."""
    for name in ("models/bert", "data"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    (tmp_path / "w.pt").touch()
    (tmp_path / "net.py").touch()

    def write(text, **overrides):
        (tmp_path / "jobs.yaml").write_text(text, encoding="utf-8")
        return read_manifest(tmp_path / "jobs.yaml", overrides=overrides)

    return write


def refused(manifest, text):
    with pytest.raises(UsageError) as caught:
        manifest(text)
    return str(caught.value)


def test_a_matrix_is_spelled_out_in_the_order_written(manifest):
    jobs = manifest(
        "defaults: {data: data, seed: 3}\n"
        "jobs:\n"
        "  - name: bert\n"
        "    model: models/bert\n"
        "    matrix: {method: [svd, nc1], budget: ['layers=60%', [layers=0.4, params=80%]]}\n"
    )
    assert [(job.settings.method.method, job.settings.method.budget) for job in jobs] == [
        ("svd", ("layers=60%",)),
        ("svd", ("layers=0.4", "params=80%")),
        ("nc1", ("layers=60%",)),
        ("nc1", ("layers=0.4", "params=80%")),
    ]
    assert [job.name for job in jobs][:2] == [
        "bert-svd-layers-60",
        "bert-svd-layers-0.4-params-80",
    ]
    assert {job.settings.seed for job in jobs} == {3}


def test_the_matrix_of_the_defaults_gives_way_to_a_jobs_own_value(manifest):
    jobs = manifest(
        "defaults: {data: data, budget: layers=50%, matrix: {method: [svd, nc1], seed: [0, 1]}}\n"
        "jobs:\n"
        "  - {name: a, model: models/bert, method: asvd}\n"
        "  - {name: b, model: models/bert, matrix: {}}\n"
    )
    assert [job.name for job in jobs] == ["a-0", "a-1", "b"]
    assert [job.settings.method.method for job in jobs] == ["asvd", "asvd", "nc1"]


def test_paths_are_taken_from_the_manifests_directory(manifest, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    (job, factory, named) = manifest(
        "defaults: {budget: layers=50%}\n"
        "jobs:\n"
        "  - {model: models/bert, data: data, checkpoint: w.pt, test_data: owner/set}\n"
        "  - {model: net.py:build, data: ./data}\n"
        "  - {model: resnet50, data: sklearn:digits}\n"
    )
    assert job.settings.model.model == str(tmp_path / "models/bert")
    assert job.settings.model.checkpoint == tmp_path / "w.pt"
    assert job.settings.data.data == str(tmp_path / "data")
    assert job.settings.data.test_data == "owner/set"
    assert factory.settings.model.model == f"{tmp_path / 'net.py'}:build"
    assert (named.settings.model.model, named.settings.data.data) == ("resnet50", "sklearn:digits")
    assert [found.name for found in (job, factory, named)] == [
        "bert-layers-50",
        "net-layers-50",
        "resnet50-layers-50",
    ]


def test_overrides_and_nulls_win_over_the_manifest(manifest):
    text = (
        "defaults: {model: models/bert, data: data, budget: layers=50%, limit: 9, seed: 4}\n"
        "jobs: [{name: a}, {name: b, limit: null, seed: null}]\n"
    )
    assert [(job.settings.data.limit, job.settings.seed) for job in manifest(text)] == [
        (9, 4),
        (None, 0),
    ]
    assert [job.settings.data.limit for job in manifest(text, limit=2)] == [2, 2]


def test_variables_become_what_their_key_expects(manifest, monkeypatch):
    monkeypatch.setenv("SAMPLES", "64")
    (job,) = manifest("jobs: [{model: a, data: b, budget: layers=1, limit: '${SAMPLES}'}]")
    assert job.settings.data.limit == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "jobs:\n  - model: a\n    methud: svd\n",
            "jobs.yaml:3: jobs[0]: unknown key 'methud'. Did you mean 'method'?",
        ),
        ("jobs:\n  - device: cudo\n", "jobs.yaml:2: jobs[0].device: found 'cudo'. Did you mean"),
        (
            "defaults:\n  limit: many\njobs: [{}]\n",
            "jobs.yaml:2: defaults.limit: Input should be a valid integer",
        ),
        ("jobs:\n  - {model: a, data: b}\n", "jobs.yaml:2: jobs[0]: Nothing says how small."),
        ("jobs:\n  - {data: b, budget: layers=1}\n", "jobs.yaml:2: jobs[0] has no model."),
        (
            "jobs:\n  - model: a\n    data: b\n    matrix:\n      budget:\n"
            "        - layers=1\n        - layres=50%\n",
            "jobs.yaml:7: jobs[0].matrix.budget[1]: Unknown budget 'layres'. Did you mean 'layers'",
        ),
        (
            "jobs:\n  - {model: a, data: b, budget: layers=1, method: nc2}\n",
            "jobs.yaml:2: jobs[0].method: Unknown method 'nc2'. Did you mean 'nc1'?",
        ),
        (
            "jobs:\n  - {model: ./none, data: b, budget: layers=1}\n",
            "jobs.yaml:2: jobs[0].model: ",
        ),
        (
            "jobs:\n  - {model: a, data: b, budget: layers=1, plan: none.json}\n",
            "jobs.yaml:2: jobs[0].plan: ",
        ),
        (
            "jobs:\n  - {model: a, data: b, budget: layers=1, seed: 1, matrix: {seed: [1]}}\n",
            "jobs.yaml:2: jobs[0].matrix.seed: jobs[0] has a seed of its own",
        ),
        (
            "jobs:\n  - {name: x, model: a, data: b, budget: layers=1}\n"
            "  - {name: X, model: c, data: b, budget: layers=1}\n",
            "jobs.yaml:3: a second job is called 'X'; the first stands on line 2",
        ),
        (
            "jobs:\n  - {name: x, model: a, data: b, budget: layers=1}\n"
            "  - {name: y, model: a, data: b, budget: layers=1}\n",
            "jobs.yaml:3: 'y' is the same job as 'x' on line 2",
        ),
        ("jobs:\n  - {name: ../x, model: a}\n", "cannot name a directory"),
        ("jobs:\n  - {name: logs, model: a, data: b, budget: layers=1}\n", "'logs' is taken"),
        ("jobs: []\n", "jobs.yaml:1: jobs: "),
        ("- a\n", "jobs.yaml:1: expected a mapping"),
        ("", "jobs.yaml:1: expected a mapping"),
        ("defaults: {}\n", "the key 'jobs' is missing"),
        ("jbos: []\n", "unknown key 'jbos'. Did you mean 'jobs'?"),
        ("jobs: [{model: a, matrix: {nmae: [b]}}]\n", "jobs[0].matrix: unknown key 'nmae'"),
    ],
)
def test_a_mistake_is_told_with_its_line(text, message, manifest):
    assert message in refused(manifest, text)


def test_all_mistakes_are_told_at_once(manifest):
    told = refused(
        manifest,
        "jobs:\n"
        "  - {model: ./none, data: b, budget: layers=1}\n"
        "  - {model: a, data: b, method: nc2, budget: layers=1}\n"
        "  - {model: a, data: b}\n",
    )
    assert "3 problems, and no job was begun" in told
    assert [line.split(":")[1] for line in told.splitlines()[1:]] == ["2", "3", "4"]


def test_a_mistake_in_the_defaults_is_told_once(manifest):
    told = refused(
        manifest,
        "defaults: {method: nc2, data: b, budget: layers=1}\njobs: [{model: a}, {model: c}]\n",
    )
    assert told.count("nc2") == 1
