"""The manifests for KubeRay are what its API and Kubernetes take, and hold no secret.

Its own definitions are not part of a package: those that the manifests use are written down here, after
`ray-operator/apis/ray/v1` of KubeRay 1.5. With `KUBERAY_CRDS=FOLDER`, a copy of `helm-chart/kuberay-operator/crds`,
the manifests are checked against the real ones too.
"""

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "services" / "kuberay"
KUBERNETES = "1.31"
COUNT, TEXTS = {"type": "integer", "minimum": 0}, {"type": "object", "additionalProperties": {"type": "string"}}


def of(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


POD = of(["spec"], spec={"type": "object"}, metadata={"type": "object"})
SPECS = {
    "RayCluster": of(
        ["headGroupSpec"],
        rayVersion={"type": "string"},
        authOptions=of([], mode={"enum": ["disabled", "token"]}, secretName={"type": "string"}),
        enableInTreeAutoscaling={"type": "boolean"},
        autoscalerOptions=of(
            [],
            idleTimeoutSeconds=COUNT,
            upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        ),
        headGroupSpec=of(["template"], rayStartParams=TEXTS, template=POD),
        workerGroupSpecs={
            "type": "array",
            "items": of(
                ["groupName", "minReplicas", "maxReplicas", "template"],
                groupName={"type": "string"},
                replicas=COUNT,
                minReplicas=COUNT,
                maxReplicas=COUNT,
                rayStartParams=TEXTS,
                template=POD,
            ),
        },
    ),
    "RayJob": of(
        ["entrypoint"],
        entrypoint={"type": "string"},
        clusterSelector=TEXTS,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    ),
}


def resources() -> list[dict[str, Any]]:
    files = sorted(FOLDER.glob("*.yaml"))
    return [found for file in files for found in yaml.safe_load_all(file.read_text())]


def templates() -> list[dict[str, Any]]:
    [cluster] = [one for one in resources() if one["kind"] == "RayCluster"]
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"] for group in groups]


@pytest.mark.parametrize("resource", resources(), ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_is_what_its_kind_takes(resource):
    if resource["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(resource, KUBERNETES, strict=True)
        return
    jsonschema.validate(resource["spec"], SPECS[resource["kind"]])
    if "KUBERAY_CRDS" in os.environ:
        [found] = Path(os.environ["KUBERAY_CRDS"]).glob(f"ray.io_{resource['kind'].lower()}s.yaml")
        [version] = [one for one in yaml.safe_load(found.read_text())["spec"]["versions"] if one["name"] == "v1"]
        jsonschema.validate(resource, version["schema"]["openAPIV3Schema"])


@pytest.mark.parametrize("template", templates(), ids=["head", "worker"])
def test_a_pod_is_one_that_kubernetes_takes_and_is_not_root(template):
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": template["spec"]}
    kubernetes_validate.validate(pod, KUBERNETES, strict=True)
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    mounted = {mount["name"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}


def test_credentials_are_named_and_not_written():
    for template in templates():
        [container] = template["spec"]["containers"]
        for variable in container["env"]:
            secret = re.search(r"PASSWORD|USERNAME|STORAGE|URI", variable["name"])
            assert ("valueFrom" in variable) == bool(secret), variable["name"]


def test_the_job_runs_on_the_cluster_and_the_version_is_ours():
    by_kind = {one["kind"]: one for one in resources()}
    assert by_kind["RayJob"]["spec"]["clusterSelector"]["ray.io/cluster"] == by_kind["RayCluster"]["metadata"]["name"]
    assert f"ray=={by_kind['RayCluster']['spec']['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
