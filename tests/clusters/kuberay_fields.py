"""The fields of KubeRay's resources that manifests of this project use, as strict JSON schemas: no other field is
allowed, so a misspelt one is an error (a Kubernetes API server drops it in silence).

Source: the Go types that KubeRay's CRDs are generated from, ray-project/kuberay,
ray-operator/apis/ray/v1/rayjob_types.go at f6ef3f7b and raycluster_types.go at 3275ee09 (v1.3 and newer), their JSON
names, types, required fields and enumerations. `template` is a PodTemplateSpec of Kubernetes, which its own schema
judges.
"""

from typing import Any

TEXT, COUNT, SWITCH, ANY = (
    {"type": "string"},
    {"type": "integer", "minimum": 0},
    {"type": "boolean"},
    {"type": "object"},
)
PARAMETERS = {"type": "object", "additionalProperties": TEXT}
QUANTITIES = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}


def strict(required: tuple[str, ...] = (), **fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(required), "additionalProperties": False}


AUTOSCALER = strict(
    resources=strict(limits=QUANTITIES, requests=QUANTITIES),
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    idleTimeoutSeconds=COUNT,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
)
HEAD = strict(
    ("template", "rayStartParams"),
    template=ANY,
    rayStartParams=PARAMETERS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    enableIngress=SWITCH,
)
WORKERS = strict(
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    numOfHosts=COUNT,
    rayStartParams=PARAMETERS,
    template=ANY,
)
CLUSTER = strict(
    ("headGroupSpec",),
    rayVersion=TEXT,
    enableInTreeAutoscaling=SWITCH,
    autoscalerOptions=AUTOSCALER,
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    suspend=SWITCH,
)
JOB = strict(
    activeDeadlineSeconds=COUNT,
    backoffLimit=COUNT,
    submitterConfig=strict(backoffLimit=COUNT),
    rayClusterSpec=CLUSTER,
    clusterSelector=PARAMETERS,
    metadata=PARAMETERS,
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    shutdownAfterJobFinishes=SWITCH,
    ttlSecondsAfterFinished=COUNT,
    suspend=SWITCH,
)


def resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The schema of a whole manifest."""
    metadata = strict(("name",), name=TEXT, namespace=TEXT, labels=PARAMETERS, annotations=PARAMETERS)
    head = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": metadata}
    return strict(("apiVersion", "kind", "metadata", "spec"), **head, spec=spec)


SCHEMAS = {"RayJob": resource("RayJob", JOB), "RayCluster": resource("RayCluster", CLUSTER)}
