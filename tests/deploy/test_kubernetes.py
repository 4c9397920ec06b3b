"""deploy/kubernetes: rendered by kustomize, held against the schemas of Kubernetes and against the service itself."""

import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support import custom_resources
from tests.support.manifests import KUBERNETES, Objects, named, ours, problems, render, render_objects

EXAMPLES = tuple(sorted(f"examples/{path.name}" for path in (KUBERNETES / "examples").iterdir()))
RENDERED = ("base", "overlays/dev", "overlays/prod", "overlays/prod-mtls", "sidecar", *EXAMPLES)
RUNNABLE = RENDERED[1:]  # the base alone lacks who is asking, on purpose
VERSIONS = ("1.35", "1.36", "1.37")  # the three that Kubernetes itself supports

pytestmark = pytest.mark.tool("kustomize")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RENDERED)
def test_the_schema(name: str, version: str) -> None:
    """Each object is one of that version of Kubernetes, without a field it does not know."""
    for each in render_objects(name):
        if not custom_resources.is_custom(each):
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.tool("go")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_schema_of_custom_resources(name: str) -> None:
    """Each custom resource is one that its operator or gateway takes."""
    custom = [each for each in render_objects(name) if custom_resources.is_custom(each)]
    assert {} == {each["kind"]: found for each in custom if (found := custom_resources.mistakes(each))}


@pytest.mark.tool("go")
def test_the_schema_of_custom_resources_refuses() -> None:
    """A field that does not exist, also far inside, and a value of the wrong type."""
    for place, value in (
        (("spec", "podMetricsEndpoints", 0, "prot"), "metrics"),
        (("spec", "selector", "matchLabels"), "conversations"),
    ):
        (monitor,) = [each for each in render_objects("examples/monitoring") if each["kind"] == "PodMonitor"]
        assert [] == custom_resources.mistakes(monitor)
        put(monitor, place, value)
        assert 1 == len(custom_resources.mistakes(monitor))


def test_the_schema_refuses() -> None:
    """A field that does not exist, and a value of the wrong type."""
    for place, value in ((("spec", "relicas"), 3), (("spec", "minReadySeconds"), "soon")):
        (deployment,) = [each for each in render_objects("base") if each["kind"] == "Deployment"]
        put(deployment, place, value)
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(deployment, VERSIONS[-1], strict=True)


def test_the_versions() -> None:
    """They are the newest that there are schemas of."""
    package = Path(kubernetes_validate.__file__).parent
    found = {match for path in package.rglob("v*-local") if (match := re.fullmatch(r"v(1\.\d+)\.0-local", path.name))}
    assert list(VERSIONS) == sorted((match[1] for match in found), key=lambda text: int(text[2:]))[-3:]


@pytest.mark.parametrize("name", RUNNABLE)
def test_it_fits_the_service(name: str) -> None:
    """Settings, probes, ports, selectors, rights, times and the policy are those of this version of the service."""
    migrates_itself = {"sidecar", "examples/sidecar-http", "examples/sidecar-monitoring", "overlays/dev"}
    containers = {"examples/citus": 4} | dict.fromkeys(migrates_itself, 1)
    assert len(ours(render_objects(name))) == containers.get(name, 2)
    assert [] == problems(render_objects(name))


def test_the_base_lets_nobody_in() -> None:
    """Without an overlay that says who is asking, the service does not start."""
    (found,) = set(problems(render_objects("base")))
    assert "must be true to serve an address that others reach (CONVERSATIONS_LISTEN) without identity" in found


def put(target: Any, place: tuple[Any, ...], value: Any) -> None:
    """Sets what is at the end of ``place``; None removes it."""
    for step in place[:-1]:
        target = target[step]
    if value is None:
        del target[place[-1]]
    else:
        target[place[-1]] = value


POD = ("spec", "template", "spec")
SERVER = (*POD, "containers", 0)
SIDECAR = (*POD, "initContainers", 0)
ENDPOINT = ("spec", "podMetricsEndpoints", 0)
ROUTE = ("spec", "rules", 0)
LABEL = "app.kubernetes.io/name"


@pytest.mark.parametrize(
    "name, kind, place, value, complaint",
    [
        ("prod", "ConfigMap", ("data", "CONVERSATIONS_POOLSIZE"), "9", "poolsize: no setting"),
        ("prod", "ConfigMap", ("data", "CONVERSATIONS_POOL_SIZE"), "many", "settings: Input should be a valid integer"),
        ("prod", "ConfigMap", ("data", "CONVERSATIONS_JWT_AUDIENCE"), None, "jwt_audience: identity=jwt needs it"),
        ("dev", "ConfigMap", ("data", "CONVERSATIONS_ALLOW_ANONYMOUS"), None, "without identity"),
        ("prod", "Deployment", (*SERVER, "volumeMounts", 0, "mountPath"), "/tls", "tls.crt is not mounted"),
        ("prod", "Deployment", (*SERVER, "volumeMounts", 1, "subPath"), "policy.yaml", "policy.yaml is not mounted"),
        ("prod", "Policy", ("data", "policy.yaml"), "- permit: {actions: [creat]}\n", "creat"),
        ("prod", "Policy", ("data", "retention.yaml"), "'*': {tll: 90d}\n", "ttl, idle_ttl, at_most"),
        ("prod", "Deployment", (*SERVER, "envFrom", 0, "configMapRef", "name"), "x", "x: nobody makes it"),
        ("prod", "Deployment", (*POD, "serviceAccountName"), "y", "y: nobody makes it"),
        ("prod", "Job", (*SERVER, "image"), "x/conversation-service:2", "images: registry.example.com/"),
        ("prod", "Job", (*SERVER, "args"), ["migrat"], "migrat"),
        ("prod", "Job", (*SERVER, "args"), ["migrate", "--chekc"], "--chekc"),
        ("prod", "Deployment", (*SERVER, "livenessProbe", "httpGet", "path"), "/ready", "Probe: asks for 'readiness'"),
        ("prod", "Deployment", (*SERVER, "startupProbe", "httpGet", "path"), "/started", "Probe: asks for None"),
        ("prod", "Deployment", (*SERVER, "readinessProbe"), {"grpc": {"port": 50051}}, "Probe: asks for None"),
        ("sidecar", "Deployment", (*SIDECAR, "readinessProbe"), None, "readinessProbe: none"),
        ("prod", "Deployment", (*SERVER, "readinessProbe", "httpGet", "port"), "grpc", "grpc is not the port of the"),
        (
            "prod",
            "ConfigMap",
            ("data", "CONVERSATIONS_METRICS_LISTEN"),
            "127.0.0.1:9464",
            "nothing answers the",
        ),
        ("http", "ConfigMap", ("data", "CONVERSATIONS_HTTP_LISTEN"), "0.0.0.0:8081", "but the settings say"),
        ("dev", "Deployment", (*SERVER, "ports", 0, "containerPort"), 50053, "but the settings say"),
        ("sidecar", "Deployment", (*SIDECAR, "ports", 0, "containerPort"), 9465, "but the settings say"),
        (
            "monitoring",
            "PodMonitor",
            ("spec", "selector", "matchLabels", LABEL),
            "x",
            "conversations: selects nothing",
        ),
        ("monitoring", "PodMonitor", (*ENDPOINT, "port"), "http", "the container has no http"),
        ("monitoring", "PodMonitor", (*ENDPOINT, "relabelings"), [], "PodMonitor: the job is []"),
        ("grpc-route", "GRPCRoute", (*ROUTE, "backendRefs", 0, "port"), 80, "route: leads to conversations-gateway:80"),
        ("grpc-route", "GRPCRoute", (*ROUTE, "matches", 0, "method", "service"), "v1.X", "route: v1.X is not served"),
        ("managed-postgres", "Job", (*SERVER, "volumeMounts"), [], "ca.pem is not mounted"),
        ("istio", "Deployment", (*SERVER, "volumeMounts", 0, "mountPath"), "/mesh", "root-cert.pem is not mounted"),
        ("dev", "ConfigMap", ("data", "CONVERSATIONS_METRICS_LISTEN"), "0.0.0.0:9", "Prometheus is sent to 9464"),
        ("dev", "Service", ("spec", "ports", 0, "targetPort"), "http", "the container has no http"),
        ("dev", "NetworkPolicy", ("spec", "ingress", 1, "ports", 0, "port"), "prom", "the container has no prom"),
        ("dev", "Service", ("spec", "selector", LABEL), "x", "Service conversations: selects nothing"),
        ("prod", "Service", ("spec", "selector", "app.kubernetes.io/component"), None, "selects pods of 2 owners"),
        ("prod", "PodDisruptionBudget", ("spec", "selector", "matchLabels", "x"), "y", "selects nothing"),
        ("dev", "NetworkPolicy", ("spec", "podSelector", "matchLabels", LABEL), "x", "selects nothing"),
        ("dev", "Deployment", ("spec", "template", "metadata", "labels", LABEL), "x", "spread: over other pods"),
        ("prod", "HorizontalPodAutoscaler", ("spec", "scaleTargetRef", "name"), "x", "autoscaler: of nothing"),
        ("dev", "Deployment", (*POD, "securityContext", "runAsUser"), 0, "server: runs as 0:65532"),
        ("dev", "Deployment", (*POD, "securityContext", "runAsNonRoot"), None, "server: runAsNonRoot is None"),
        ("dev", "Deployment", (*POD, "securityContext", "seccompProfile"), None, "server: seccompProfile is None"),
        (
            "prod",
            "Job",
            (*SERVER, "securityContext", "readOnlyRootFilesystem"),
            False,
            "readOnlyRootFilesystem is",
        ),
        ("sidecar", "Deployment", (*SIDECAR, "securityContext", "capabilities"), {}, "conversations: capabilities"),
        ("prod", "Job", (*SERVER, "securityContext", "allowPrivilegeEscalation"), None, "migrate: allowPrivilege"),
        ("prod", "Job", (*POD, "automountServiceAccountToken"), None, "0.1.0: automountServiceAccountToken"),
        ("dev", "Deployment", (*POD, "enableServiceLinks"), True, "conversations: enableServiceLinks"),
        ("dev", "Deployment", (*POD, "terminationGracePeriodSeconds"), 20, "20, must be more than 25"),
        ("dev", "ConfigMap", ("data", "CONVERSATIONS_GRACE_SECONDS"), "25", "30, must be more than 40"),
        ("dev", "Deployment", ("spec", "strategy", "rollingUpdate", "maxUnavailable"), 1, "maxUnavailable is 1"),
        ("prod", "HorizontalPodAutoscaler", ("spec", "maxReplicas"), 9, "10 pods take 100 connections"),
        ("sidecar", "Deployment", (*POD, "securityContext", "fsGroup"), None, "fsGroup: not that of the socket"),
        ("sidecar", "Deployment", (*POD, "containers", 0, "volumeMounts"), [], "assistant: has no /run/conversations"),
        ("sidecar-http", "Deployment", (*SIDECAR, "env", 7, "value"), "unix:/run/x/http", "assistant: has no /run/x"),
        (
            "sidecar",
            "Deployment",
            (*POD, "volumes", 0),
            {"name": "conversations", "hostPath": {}},
            "conversations: has",
        ),
        ("sidecar", "Deployment", (*SIDECAR, "args"), ["serve", "--port"], "--port"),
        ("citus", "Deployment", (*SIDECAR, "args"), ["distribute"], "distribution: the pods do not wait for it"),
        ("citus", "Job", (*SIDECAR, "args"), ["migrate", "--check"], "distribution: before the migration"),
        ("citus", "Job", (*SERVER, "args"), ["distribute", "--shard=32"], "--shard"),
        ("citus", "ConfigMap", ("data", "CONVERSATIONS_POOL_SIZE"), "11", "9 pods take 99 connections"),
    ],
)
def test_a_mistake_is_found(name: str, kind: str, place: tuple[Any, ...], value: Any, complaint: str) -> None:
    """One change to what fits, and a check says what no longer does."""
    (folder,) = [each for each in RUNNABLE if each.rpartition("/")[2] == name]
    objects = render_objects(folder)
    put(spoiled(objects, kind), place, value)
    found = problems(objects)
    assert any(complaint in each for each in found), found


def spoiled(objects: Objects, kind: str) -> Any:
    """The object to change: ours of that kind; `Policy` is the ConfigMap with the policy."""
    if kind == "Policy":
        return named(objects, "ConfigMap", "conversations-policy")
    mine = [each for each in objects if kind == each["kind"] and "postgres" not in each["metadata"]["name"]]
    return next(each for each in mine if each["metadata"]["name"] != "conversations-policy")


def test_a_change_of_settings_replaces_pods_and_one_of_the_policy_does_not(tmp_path: Path) -> None:
    """The name of the settings follows from what they are; the policy's stays, for pods to read it anew."""
    shutil.copytree(KUBERNETES, tmp_path / "kubernetes")
    before = references(render_objects("overlays/dev"))
    settings, policy = (tmp_path / "kubernetes" / "base" / name for name in ("settings.env", "policy.yaml"))
    policy.write_text("[]\n", encoding="utf-8")
    assert before == references(list(yaml.safe_load_all(render(str(tmp_path / "kubernetes/overlays/dev")))))
    settings.write_text(settings.read_text(encoding="utf-8") + "CONVERSATIONS_WORKERS=1\n", encoding="utf-8")
    render.cache_clear()
    after = references(list(yaml.safe_load_all(render(str(tmp_path / "kubernetes/overlays/dev")))))
    assert ("conversations-policy", "conversations-policy") == (before[1], after[1])
    assert before[0] != after[0]


def references(objects: Objects) -> tuple[str, str]:
    """The ConfigMaps that the Deployment names: settings and policy."""
    pod = named(objects, "Deployment", "conversations")["spec"]["template"]["spec"]
    (policy,) = [volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume]
    return pod["containers"][0]["envFrom"][0]["configMapRef"]["name"], policy
