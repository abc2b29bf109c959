"""The KubeRay manifests are valid, and fit together."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.commands import check_command
from tests.cluster.schemas import ROOT, errors_of, misspelt, schema_of

FOLDER = ROOT / "cluster" / "kuberay"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
MAPS = {"labels", "matchLabels", "requests", "limits", "resources", "annotations", "nodeSelector"}
"""Fields whose keys are free."""
PART = {"app.kubernetes.io/part-of": "lotts-search"}


def manifest(file: str) -> Any:
    return yaml.safe_load((FOLDER / file).read_text())


def clusters() -> dict[str, Any]:
    """The specifications of Ray clusters by file."""
    keys = {"cluster.yaml": "", "study.yaml": "rayClusterSpec", "endpoint.yaml": "rayClusterConfig"}
    return {file: manifest(file)["spec"][key] if key else manifest(file)["spec"] for file, key in keys.items()}


def groups(spec: Any) -> list[Any]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.mark.parametrize("file", FILES)
def test_a_manifest_is_valid(file: str) -> None:
    found = manifest(file)
    assert not errors_of(schema_of(found["kind"]), found)


@pytest.mark.parametrize("file", FILES)
def test_every_misspelt_key_is_an_error(file: str) -> None:
    """Or its parent is a map with free keys: the check would otherwise pass on whatever is written there."""
    found = manifest(file)
    schema = schema_of(found["kind"])
    unnoticed = [path for path, wrong in misspelt(found) if not errors_of(schema, wrong)]
    assert not [path for path in unnoticed if len(path) < 2 or path[-2] not in MAPS]


def test_the_operator_accepts_the_study() -> None:
    """Rules that KubeRay checks beyond its schemas."""
    spec = manifest("study.yaml")["spec"]
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert spec["submissionMode"] == "SidecarMode" and head["restartPolicy"] == "Never"
    assert not {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & set(spec)
    rules = spec["deletionStrategy"]["deletionRules"]
    assert rules and not {"shutdownAfterJobFinishes", "ttlSecondsAfterFinished"} & set(spec)
    assert not any(rule["policy"] == "DeleteWorkers" for rule in rules), "not with autoscaling"
    after = {(rule["condition"]["jobStatus"], rule["policy"]): rule["condition"]["ttlSeconds"] for rule in rules}
    assert len(after) == len(rules)
    assert after["SUCCEEDED", "DeleteCluster"] <= after["SUCCEEDED", "DeleteSelf"]
    assert isinstance(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"], str)


def test_the_operator_accepts_the_upgrade() -> None:
    spec = manifest("endpoint.yaml")["spec"]
    options = spec["upgradeStrategy"]["clusterUpgradeOptions"]
    assert spec["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade"
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"]
    assert 0 < options["stepSizePercent"] <= options["maxSurgePercent"] <= 100 and options["intervalSeconds"] > 0


@pytest.mark.parametrize("file", clusters())
def test_clusters_want_a_token_and_the_tested_version(file: str) -> None:
    spec = clusters()[file]
    assert spec["authOptions"] == {"mode": "token"}
    version = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert version and spec["rayVersion"] == version[1]
    assert spec["autoscalerOptions"]["version"] == "v2" and spec["enableInTreeAutoscaling"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]


@pytest.mark.parametrize("file", clusters())
def test_the_network_policy_selects_all_pods(file: str) -> None:
    policy = manifest("network-policy.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"] == PART
    for group in groups(clusters()[file]):
        assert PART.items() <= group["template"]["metadata"]["labels"].items()


def test_the_network_policy_opens_only_the_dashboard_and_the_endpoint() -> None:
    policy = manifest("network-policy.yaml")["spec"]
    open_to = [rule for rule in policy["ingress"] if rule["from"] != [{"podSelector": {"matchLabels": PART}}]]
    assert [[port["port"] for port in rule["ports"]] for rule in open_to] == [[8265, 8000], [8000]]
    assert all(rule["from"] for rule in open_to), "an empty rule lets everybody in"


@pytest.mark.parametrize("file", clusters())
def test_volumes_are_mounted_and_exist(file: str) -> None:
    text = (FOLDER / file).read_text()
    claim = manifest("storage.yaml")["metadata"]["name"]
    for group in groups(clusters()[file]):
        pod = group["template"]["spec"]
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] == claim
            elif "configMap" in volume:
                assert f"kubectl create configmap {volume['configMap']['name']} " in text
            else:
                assert f"kubectl create secret generic {volume['secret']['secretName']} " in text
        assert {mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]} >= {"/shared"}


def test_the_study_is_a_command_of_this_version_with_results_on_the_volume() -> None:
    words = shlex.split(manifest("study.yaml")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "lotts_search"]
    options = check_command(words[3:])
    assert str(options["out"]).startswith("/shared/") and options["device"] == "cuda"
    (gpu,) = manifest("study.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert options["generators"] <= gpu["maxReplicas"], "each generator has a GPU"


def test_the_endpoint_is_an_application_of_serve() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="the endpoint needs the extra serve")
    spec = manifest("endpoint.yaml")["spec"]
    config = yaml.safe_load(spec["serveConfigV2"])
    (application,) = schema.ServeDeploySchema.model_validate(config).applications
    labels = [group["labels"] for group in spec["rayClusterConfig"]["workerGroupSpecs"]]
    for deployment in application.deployments:
        selector = deployment.ray_actor_options.label_selector
        assert any(selector.items() <= own.items() for own in labels)
    assert application.import_path == "lotts_search.serve:app"
    serve = pytest.importorskip("lotts_search.serve.config", reason="there is no endpoint yet")
    parsed = serve.parse(application.args)
    gpus = sum(model.generators + len(model.verifiers) for model in parsed.models)
    group = next(group for group in spec["rayClusterConfig"]["workerGroupSpecs"] if group["labels"] == {"pool": "gpu"})
    assert group["minReplicas"] >= gpus, "each generator and verifier has a GPU"


@pytest.mark.parametrize(
    "file", [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "cluster").rglob("*.*"))]
)
def test_commands_in_comments_run(file: str) -> None:
    """Options exist, and so do the files of this repository that they name."""
    for line in re.findall(r"^#   (.+?)(?:    #.*)?$", (ROOT / file).read_text(), re.MULTILINE):
        words = shlex.split(line.removesuffix(" &"))
        for word in words:
            assert not word.startswith("cluster/") or (ROOT / word).exists(), f"{file}: {word}"
        if words[0] == "lotts-search":
            check_command(words[1:])


def test_there_is_something_to_test() -> None:
    assert {"cluster.yaml", "study.yaml", "endpoint.yaml", "network-policy.yaml", "storage.yaml"} == set(FILES)
    assert Path(FOLDER).is_dir()
