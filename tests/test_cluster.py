"""docs/cluster: the Kubernetes job against its schemas, the Slurm scripts against bash and our options."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest

from pgsr.runtime.generate.cli import main as generate
from pgsr.trainer.cli import main as train

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "cluster"
SCRIPTS = sorted(FOLDER.glob("*.sbatch"))
OPTIONS = {  # of sbatch(1), that scripts here may use; `sbatch --test-only` of Slurm 22.05 takes both
    *("--job-name", "--nodes", "--ntasks-per-node", "--cpus-per-task", "--gpus-per-node", "--mem", "--time"),
    *("--signal", "--requeue", "--output"),
}

# KubeRay's RayJob (ray.io/v1): names and kinds of its own fields, by ray-operator/apis/ray/v1 of its sources.
# Templates of pods are Kubernetes' own, and are held to its schema.
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def fields(required: str = "", **properties: dict[str, Any]) -> dict[str, Any]:
    names = required.split()
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


GROUP: dict[str, Any] = {"rayStartParams": TEXTS, "template": {"type": "object"}}
HEAD = fields("rayStartParams template", **GROUP, serviceType=TEXT, enableIngress=FLAG)
WORKERS = fields(
    "groupName minReplicas maxReplicas rayStartParams template",
    **GROUP,
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    numOfHosts=NUMBER,
)
CLUSTER = fields(
    "headGroupSpec",
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
)
JOB = fields(
    "apiVersion kind metadata spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=fields("name", name=TEXT, namespace=TEXT, labels=TEXTS),
    spec=fields(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        backoffLimit=NUMBER,
        activeDeadlineSeconds=NUMBER,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=NUMBER,
        rayClusterSpec=CLUSTER,
    ),
)


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: dict[str, Any] = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())
    return found


def known(command: click.Command) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)}


def generate_options() -> set[str]:
    assert isinstance(generate, click.Group)
    return known(generate.commands["faces"])


needs_ray = pytest.mark.skipif("--ray" not in generate_options(), reason="pgsr-generate has no --ray yet")


def options_of(words: list[str]) -> set[str]:
    return {word for word in words if word.startswith("--")}


def test_the_job_is_a_rayjob(job: dict[str, Any]):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(job, JOB)
    for spoilt in ({**job, "kind": "RayJobs"}, {**job, "spec": {**job["spec"], "entryPoint": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, JOB)


def test_its_pods_are_kubernetes_own(job: dict[str, Any]):
    kubernetes = pytest.importorskip("kubernetes_validate")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = {"apiVersion": "v1", "kind": "PodTemplate", "template": group["template"]}
        kubernetes.validate(pod, kubernetes.latest_version(), strict=True)
        (container,) = group["template"]["spec"]["containers"]
        container = {**container, "envForm": []}
        spoilt = {**pod, "template": {"spec": {"containers": [container]}}}
        with pytest.raises(kubernetes.ValidationError):
            kubernetes.validate(spoilt, kubernetes.latest_version(), strict=True)


@needs_ray
def test_the_jobs_command_is_ours(job: dict[str, Any]):
    command, *words = shlex.split(job["spec"]["entrypoint"])
    assert command == "pgsr-generate"
    assert options_of(words) <= generate_options()


def test_the_cluster_has_rays_version(job: dict[str, Any]):
    text = (FOLDER / "rayjob.yaml").read_text()
    assert f"rayproject/ray:{job['spec']['rayClusterSpec']['rayVersion']}-" in text


def test_a_nodes_shards_fit_its_disk(job: dict[str, Any]):
    """A worker a core, each with a shard of 10,000 PNG at hand: 1.1 GB."""
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert int(limits["ephemeral-storage"].removesuffix("Gi")) * 2**30 > 2 * int(limits["cpu"]) * 1.1e9


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_are_bash_with_options_of_sbatch(path: Path):
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text()
    options = re.findall(r"^#SBATCH (\S+?)(?:=\S+)?$", text, re.MULTILINE)
    assert len(options) == text.count("#SBATCH")
    assert set(options) <= OPTIONS
    assert "--requeue" in options
    assert text.startswith("#!/bin/bash\n")


def sent(path: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script beside an srun that prints what it is asked and an scontrol that fills a pipe."""
    for name, answer in (("srun", 'printf "%s\\n" "$@"'), ("scontrol", "seq -f n%g 20000")):
        (folder / name).write_text(f"#!/bin/bash\n{answer}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "SLURM_CPUS_PER_TASK": "16", **job}
    command = ["bash", str(path), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_scripts_start_what_they_say(path: Path, tmp_path: Path):
    done = sent(path, tmp_path, *usage(path))
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert any(word.startswith("n1:") for word in words)  # all meet on the first node
    if path.stem == "train":
        ours = words[words.index("pgsr.trainer") + 1 :]
        assert options_of(ours) <= known(train)
        assert "--resume" not in ours
    else:
        assert words[words.index("--") + 1] == "pgsr-generate"
        assert words[words.index("--num-cpus") + 1] == "16"
        assert words[-len(usage(path)) :] == usage(path)


def usage(path: Path) -> list[str]:
    """The arguments that a script's own first lines show."""
    found = re.search(rf"^#   sbatch docs/cluster/{path.name} (.*)$", path.read_text(), re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


def test_training_that_is_sent_again_goes_on(tmp_path: Path):
    (tmp_path / "run").mkdir()
    done = sent(FOLDER / "train.sbatch", tmp_path, "tiny", "data", "run")
    assert done.stdout.splitlines()[-1] == "--resume"
    bare = sent(FOLDER / "train.sbatch", tmp_path)
    assert bare.returncode == 1
    assert "a recipe" in bare.stderr


@needs_ray
def test_the_faces_script_names_options_that_exist():
    words = usage(FOLDER / "faces.sbatch")
    assert options_of([*words, "--ray", "--json"]) <= generate_options()
