"""The manifests against the strict schemas of KubeRay and Kubernetes, and the image's Dockerfile by a linter."""

import copy
import re
import shlex
import subprocess
from importlib.metadata import version

import jsonschema
import kubernetes_validate
import pytest
import yaml

from kdtvit_ray import __version__
from kdtvit_ray.arguments import parser
from tests.clusters.commands import CLUSTERS, ROOT, tool
from tests.clusters.kuberay_fields import SCHEMAS

KUBERNETES = "1.34"
MANIFESTS = {path.name: yaml.safe_load(path.read_text()) for path in sorted((CLUSTERS / "kuberay").glob("*.yaml"))}


def cluster(manifest):
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def templates(manifest):
    """The pod templates of a manifest: the head's, then those of the worker groups."""
    return [
        cluster(manifest)["headGroupSpec"]["template"],
        *(group["template"] for group in cluster(manifest)["workerGroupSpecs"]),
    ]


def check(manifest):
    """Raise a ValidationError where a field or a value is none of KubeRay's or of Kubernetes'."""
    jsonschema.validate(manifest, SCHEMAS[manifest["kind"]])
    for template in templates(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", **template.get("metadata", {})}}
        kubernetes_validate.validate({**pod, "spec": template["spec"]}, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_field_is_known_and_every_value_allowed(name):
    check(MANIFESTS[name])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job["spec"].update(backOffLimit=3),
        lambda job: job["spec"].update(shutdownAfterJobFinishes="yes"),
        lambda job: cluster(job)["headGroupSpec"]["rayStartParams"].update({"num-gpus": 0}),
        lambda job: cluster(job)["workerGroupSpecs"][0].pop("maxReplicas"),
        lambda job: cluster(job)["autoscalerOptions"].update(upscalingMode="Fast"),
        lambda job: templates(job)[1]["spec"].update(toleration=[]),
        lambda job: templates(job)[1]["spec"]["containers"][0].update(image=3),
        lambda job: templates(job)[0]["spec"]["volumes"][0]["emptyDir"].update(size="4Gi"),
    ],
)
def test_a_misspelt_field_or_a_wrong_value_is_found(spoil):
    job = copy.deepcopy(MANIFESTS["rayjob.yaml"])
    spoil(job)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check(job)


def test_both_manifests_have_the_same_cluster():
    assert cluster(MANIFESTS["rayjob.yaml"]) == cluster(MANIFESTS["raycluster.yaml"])


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_the_versions_that_are_tested_shared_memory_and_a_gpu_only_where_stages_run(name):
    spec = cluster(MANIFESTS[name])
    assert spec["rayVersion"] == version("ray")
    assert spec["headGroupSpec"]["rayStartParams"]["num-gpus"] == "0"
    assert spec["enableInTreeAutoscaling"] is True
    for template in templates(MANIFESTS[name]):
        (container,) = template["spec"]["containers"]
        assert container["image"] == f"REGISTRY/kdtvit-ray:{__version__}"
        volumes = {each["name"]: each for each in template["spec"]["volumes"]}
        mounted = {each["mountPath"]: volumes[each["name"]] for each in container["volumeMounts"]}
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert {each["name"]: each["value"] for each in container["env"]}["KDTVIT_CACHE"] in mounted
        assert container["resources"]["limits"] == container["resources"]["requests"]
    gpus = [
        each["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu")
        for each in templates(MANIFESTS[name])
    ]
    assert gpus == [None, "1"]


def test_the_job_is_never_built_anew_and_its_command_is_one_that_the_command_line_takes():
    spec = MANIFESTS["rayjob.yaml"]["spec"]
    assert spec["backoffLimit"] == 0
    script, program, *arguments = shlex.split(spec["entrypoint"])
    assert (CLUSTERS / script).is_file()
    assert program == "kdtvit-ray"
    asked = parser().parse_args(arguments)
    assert asked.takeover
    assert asked.gpus_per_worker == 1, "the head alone does not tell whether the nodes will have GPUs"
    assert asked.groups == cluster(MANIFESTS["rayjob.yaml"])["workerGroupSpecs"][0]["maxReplicas"]


def test_the_dockerfile_passes_its_linter_and_copies_what_there_is():
    path = CLUSTERS / "kuberay" / "Dockerfile"
    done = subprocess.run([tool("hadolint"), path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    text = path.read_text()
    assert f"ARG RAY={version('ray')}\n" in text
    sources = [source for line in re.findall(r"^COPY (.+)", text, flags=re.M) for source in shlex.split(line)[:-1]]
    sources = [source for source in sources if not source.startswith("--")]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    needed = re.search(r"force-include\]\n(\w+) =", (ROOT / "pyproject.toml").read_text())
    assert needed
    assert needed[1] in sources, "the wheel cannot be built without it"
