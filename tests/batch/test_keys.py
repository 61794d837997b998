import typing

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from compressor.batch import keys
from compressor.batch.keys import job_keys, manifest_model, manifest_schema
from compressor.settings import CompressSettings, DataSettings, MethodSettings, ModelSettings

SCHEMA = manifest_schema()


def accepts(text):
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(yaml.safe_load(text))


def test_every_option_of_compress_is_a_key():
    parts = {*ModelSettings.model_fields, *DataSettings.model_fields, *MethodSettings.model_fields}
    whole = {"plan", "recover", "seed"}
    assert set(job_keys()) >= parts | whole
    assert not set(job_keys()) & keys.OWNED


def test_every_key_is_explained():
    assert [key.name for key in job_keys().values() if not key.description] == []


def test_an_option_that_is_added_is_a_key(monkeypatch):
    class Extra(BaseModel):
        """More.

        Args:
            fresh: A new option, told of
                in two lines.
        """

        fresh: int = 3

    monkeypatch.setitem(
        CompressSettings.model_fields, "extra", typing.cast(typing.Any, _field(Extra))
    )
    job_keys.cache_clear()
    manifest_model.cache_clear()
    try:
        found = job_keys()["fresh"]
        assert (found.part, found.description) == ("extra", "A new option, told of in two lines.")
        made = manifest_model().model_validate({"jobs": [{"fresh": 4}]})
        assert made.jobs[0].fresh == 4
    finally:
        job_keys.cache_clear()
        manifest_model.cache_clear()


def _field(annotation):
    class Holder(BaseModel):
        extra: annotation

    return Holder.model_fields["extra"]


def test_paths_and_references_are_told_apart():
    found = job_keys()
    assert {key.name for key in found.values() if key.is_path} == {"checkpoint", "plan"}
    references = {key.name for key in found.values() if key.is_reference}
    assert references == {"model", "factory", "data", "test_data"}


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("jobs: [{model: a, data: b, budget: layers=50%}]", True),
        ("jobs: [{model: a, budget: [layers=50%, params=80%]}]", True),
        ("jobs: [{model: a, matrix: {budget: [layers=50%], seed: [1, 2]}}]", True),
        ("{defaults: {limit: 3}, jobs: [{limit: null}]}", True),
        ("jobs: [{methud: a}]", False),
        ("jobs: [{limit: 0}]", False),
        ("jobs: [{device: gpu}]", False),
        ("jobs: []", False),
        ("defaults: {}", False),
        ("{jobs: [{}], job: 1}", False),
    ],
)
def test_the_schema_takes_what_the_manifest_takes(text, good):
    assert accepts(text) is good
