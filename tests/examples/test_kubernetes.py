"""examples/kubernetes: numbers that must agree, flags that the training knows, files that the image copies."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster

from configs import alfshop
from envs.alfworld.environment import AlfworldEnvironment
from envs.webshop.environment import WebshopEnvironment
from epo_jax.errors import TryAgain, UserError
from tools.planning.chips import topology

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "examples" / "kubernetes"
ACCELERATORS = {"tpu-v5-lite-podslice": "v5e", "tpu-v5p-slice": "v5p", "tpu-v6e-slice": "v6e"}


@pytest.fixture(scope="module")
def job_set():
    (document,) = yaml.safe_load_all((FOLDER / "train.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def job(job_set):
    (replicated,) = job_set["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    return replicated["template"]["spec"]


@pytest.fixture(scope="module")
def pod(job):
    return job["template"]["spec"]


def test_a_pod_for_each_machine_of_the_slice(job_set, job, pod) -> None:
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    (container,) = pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"]["google.com/tpu"] == chips
    where = pod["nodeSelector"]
    slice_ = topology(f"{ACCELERATORS[where['cloud.google.com/gke-tpu-accelerator']]}:{where['cloud.google.com/gke-tpu-topology']}")
    assert job["completions"] == job["parallelism"] == slice_.count / chips
    assert job["completionMode"] == "Indexed"


def test_a_preemption_begins_anew_and_a_mistake_does_not(job_set, job, pod) -> None:
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [UserError.exit_code]}}
    assert TryAgain.exit_code not in rule["onExitCodes"]["values"]
    assert pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0  # else Kubernetes refuses the rule, or restarts one pod alone
    policy = job_set["spec"]["failurePolicy"]
    assert policy["maxRestarts"] > 10
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    assert pod["terminationGracePeriodSeconds"] >= 60


def test_the_training_knows_its_flags(pod) -> None:
    """And it divides over the slice."""
    (container,) = pod["containers"]
    assert container["command"] == ["python", "-m", "epo_jax.train"]
    flags = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"])
    path, preset = flags.pop("config").split(":")
    assert path == "configs/alfshop.py"
    config = alfshop.get_config(preset)
    assert set(flags) <= {f"config.{name}" for name in _names(config)}
    assert int(flags["config.learn.rows"]) % int(flags["config.mesh.fsdp"]) == 0
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    assert flags["config.workdir"].startswith(f"{mounts['bucket']}/") and flags["config.model.source"].startswith(f"{mounts['bucket']}/")


def _names(config, before: str = "") -> list[str]:
    return [name for key, value in config.items() for name in (_names(value, f"{before}{key}.") if hasattr(value, "items") else [f"{before}{key}"])]


def test_the_data_is_looked_for_in_the_bucket(pod, monkeypatch) -> None:
    """Where the head says that it must lie; by the environments themselves, of the splits that are played."""
    (container,) = pod["containers"]
    for variable in container["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    comment = "\n".join(line for line in (FOLDER / "train.yaml").read_text().splitlines() if line.startswith("#"))
    config = alfshop.get_config("llama3_8b").environments
    for environment, split in ((AlfworldEnvironment(), config.alfworld.train_split), (WebshopEnvironment(), config.webshop.train_split)):
        with pytest.raises(UserError, match="there is no folder") as refused:
            environment.tasks(split)
        folder = re.search(r"/bucket/(\w+):", str(refused.value))[1]
        assert re.search(rf"^#   {folder} ", comment, re.MULTILINE)
    (source,) = [argument.rpartition("/")[2] for argument in container["args"] if argument.startswith("--config.model.source=")]
    assert re.search(rf"^#   {source} ", comment, re.MULTILINE)


def test_the_port_is_the_one_that_jax_takes(pod) -> None:
    (container,) = pod["containers"]
    assert int(cloud_tpu_cluster.coordinator_port) in [port["containerPort"] for port in container["ports"]]


def test_what_is_to_be_replaced_is_named(pod) -> None:
    text = (FOLDER / "train.yaml").read_text()
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    for name in ("IMAGE", "BUCKET"):
        assert name in comment and re.search(rf": {name}$", text, re.MULTILINE)
    assert (FOLDER / "Dockerfile").is_file()


def test_the_image_installs_and_copies_what_there_is() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    sources = [source for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for source in line.split()]
    root = FOLDER.parents[1]
    assert sources and all((root / source).exists() for source in sources)
    version = re.search(r"^FROM python:3\.(\d+)-slim$", text, re.MULTILINE)
    assert int(version[1]) >= 11


def test_the_image_leaves_out_what_git_does_not_track() -> None:
    """And git's own folder."""
    root = FOLDER.parents[1]
    left_out = {line.removeprefix("**/") for line in (root / ".dockerignore").read_text().splitlines()}
    assert {line.rstrip("/") for line in (root / ".gitignore").read_text().splitlines()} | {".git"} <= left_out
