"""What is wrong with rendered manifests, beyond what the schemas of Kubernetes know.

Each check takes the objects of one rendering and yields a sentence for each thing that does not fit; `problems` has
those of all checks. "Ours" is a container with the service's image.
"""

import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from tempfile import NamedTemporaryFile
from typing import Any
from urllib.parse import parse_qs, urlsplit

import typer.main
import yaml
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from pydantic import ValidationError

from server.app.service import SERVICES
from server.app.supervisor import _MARGIN as TO_CLOSE_UP
from server.cli.commands import app
from server.settings.environment import PREFIX
from server.settings.retention import RetentionConfigError, parse_retention
from server.settings.service import Settings
from server.transport.health import LIVENESS, PATHS, READINESS, STARTUP

Object = dict[str, Any]
Objects = list[Object]
Problems = Iterator[str]

IMAGE = "conversation-service"
UID = 65532
CONNECTIONS = 100 - 3 - 2  # of PostgreSQL by default, but those of superusers, the migration's and the purge's
MADE_ELSEWHERE = {
    "conversations-database": {"url", "password"},
    "conversations-database-ca": {"ca.pem"},
    "conversations-tls": {"tls.crt", "tls.key", "ca.crt"},
    "istio-ca-root-cert": {"root-cert.pem"},
}
IN_THE_IMAGE = {PurePosixPath("/etc/ssl/certs/ca-certificates.crt")}
JOB = "conversations"  # of Prometheus, which the alerts and the dashboard ask for
OWNERS = ("Deployment", "Job")
PROBES = {"startupProbe": STARTUP, "readinessProbe": READINESS, "livenessProbe": LIVENESS}


ROOT = Path(__file__).parents[2]


KUBERNETES = ROOT / "deploy" / "kubernetes"


@cache
def render(name: str) -> str:
    """Of a folder, as `kubectl apply -k` would send it."""
    done = subprocess.run(["kustomize", "build", str(KUBERNETES / name)], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    assert not done.stderr, done.stderr  # a deprecated field
    return done.stdout


def render_objects(name: str) -> Objects:
    """The objects, to look at or to spoil."""
    return list(yaml.safe_load_all(render(name)))


@dataclass(frozen=True)
class Ours:
    """A container of the service, and the pod it is in."""

    objects: Objects
    owner: Object
    container: Object

    @property
    def pod(self) -> Object:
        """The template."""
        found: Object = self.owner["spec"]["template"]
        return found

    @cached_property
    def environment(self) -> dict[str, str]:
        """Its variables; what a Secret holds, as a made-up address of a database."""
        found: dict[str, str] = {}
        for source in self.container.get("envFrom", ()):
            found |= named(self.objects, "ConfigMap", source["configMapRef"]["name"]).get("data", {})
        return found | {each["name"]: each.get("value", "postgresql://x@y/z") for each in self.container["env"]}

    @property
    def is_first(self) -> bool:
        """Whether it is an init container, as a sidecar is."""
        return self.container in self.pod["spec"].get("initContainers", ())

    @property
    def given(self) -> dict[str, str]:
        """Its settings, by name."""
        own = {name: value for name, value in self.environment.items() if name.startswith(PREFIX)}
        return {name.removeprefix(PREFIX).lower(): value for name, value in own.items()}

    @cached_property
    def settings(self) -> Settings:
        """As the service reads them: the image says the profile, and where to listen."""
        image = {"profile": "prod", "listen": "0.0.0.0:50051"}
        command = {} if self.container["args"][0] == "serve" else {"allow_anonymous": "true"}  # it serves nobody
        return Settings(**(image | command | self.given))  # type: ignore[arg-type]

    @property
    def ports(self) -> dict[str, int]:
        """By name."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports", ())}


def ours(objects: Objects) -> list[Ours]:
    """All containers of the service."""
    return [
        Ours(objects, owner, container)
        for owner in of_kind(objects, *OWNERS)
        for container in containers(owner)
        if is_ours(container)
    ]


def servers(objects: Objects) -> list[Ours]:
    """Those that serve."""
    return [each for each in ours(objects) if each.container["args"][0] == "serve"]


def containers(owner: Object) -> list[Object]:
    """Of a Deployment or a Job."""
    pod = owner["spec"]["template"]["spec"]
    return [*pod.get("initContainers", ()), *pod["containers"]]


def is_ours(container: Object) -> bool:
    """By the image's name, whatever its registry, tag and digest."""
    return re.split("[:@]", str(container["image"]).rpartition("/")[2])[0] == IMAGE


def named(objects: Objects, kind: str, name: str) -> Object:
    """The object; an empty one if there is none."""
    return next((each for each in objects if (kind, name) == (each["kind"], each["metadata"]["name"])), {})


def is_of_database(each: Object) -> bool:
    """Whether it is about PostgreSQL, and not about the service."""
    name: str = each["metadata"]["name"]
    return "postgres" in name or name.startswith("citus-")


def of_kind(objects: Objects, *kinds: str) -> Objects:
    """The objects of these kinds."""
    return [each for each in objects if each["kind"] in kinds]


def standing(objects: Objects) -> list[Ours]:
    """Those that serve in pods of their own."""
    return [each for each in servers(objects) if not each.is_first]


# -- settings


def settings_exist(objects: Objects) -> Problems:
    """A variable that no setting reads is a setting somebody believes in."""
    for each in ours(objects):
        yield from (f"{name}: no setting" for name in each.given if name not in Settings.model_fields)


def settings_are_taken(objects: Objects) -> Problems:
    """Together they would not stop the start."""
    for each in ours(objects):
        try:
            assert each.settings
        except ValidationError as error:
            yield from (f"settings: {problem['msg']}" for problem in error.errors())


def files_are_mounted(objects: Objects) -> Problems:
    """Each file that a setting names is a key of what is mounted there, and not by subPath, which never changes."""
    for each in ours(objects):
        mounted = set(_mounted(each)) | IN_THE_IMAGE
        for name, value in each.given.items():
            authorities = parse_qs(urlsplit(value).query).get("sslrootcert", [])
            files = [path for path in (value, *authorities) if path.startswith("/")]
            yield from (f"{name}: {path} is not mounted" for path in files if PurePosixPath(path) not in mounted)


def _mounted(each: Ours) -> Iterator[PurePosixPath]:
    volumes = {volume["name"]: volume for volume in each.pod["spec"].get("volumes", ())}
    for mount in each.container.get("volumeMounts", ()):
        if "subPath" not in mount:
            keys = _files_of(volumes[mount["name"]], each.objects)
            yield from (PurePosixPath(mount["mountPath"]) / key for key in keys)


def _files_of(volume: Object, objects: Objects) -> Collection[str]:
    """The keys of the ConfigMap or Secret that a volume is made of."""
    name = volume.get("configMap", {}).get("name") or volume.get("secret", {}).get("secretName")
    if name in MADE_ELSEWHERE:
        return MADE_ELSEWHERE[name]
    data: Object = named(objects, "ConfigMap", name).get("data", {}) if "configMap" in volume else {}
    return data.keys()


def policy_is_accepted(objects: Objects) -> Problems:
    """By the service's own check."""
    for each in of_kind(objects, "ConfigMap"):
        texts = [text for name, text in each["data"].items() if name == "policy.yaml"]
        yield from (f"policy: {mistakes}" for text in texts if (mistakes := _mistakes(text)))


def retention_is_accepted(objects: Objects) -> Problems:
    """The service takes the retention file that is mounted."""
    for each in of_kind(objects, "ConfigMap"):
        if text := each["data"].get("retention.yaml"):
            try:
                parse_retention(text.encode())
            except RetentionConfigError as error:
                yield f"retention: {error}"


@cache
def _mistakes(policy: str) -> str:
    with NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(policy)
        file.flush()
        command = [sys.executable, "-m", "server", "policy", "check", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{done.stdout}{done.stderr}" if done.returncode else ""


def references_exist(objects: Objects) -> Problems:
    """Each ConfigMap and Secret that is named is rendered, or known to be made elsewhere."""
    known = {each["metadata"]["name"] for each in of_kind(objects, "ConfigMap", "Secret", "ServiceAccount")}
    for each in ours(objects):
        sources = [next(iter(source.values())) for source in each.container.get("envFrom", ())]
        keys = [entry["valueFrom"]["secretKeyRef"] for entry in each.container["env"] if "valueFrom" in entry]
        volumes = each.pod["spec"].get("volumes", ())
        names = {source["name"] for source in (*sources, *keys)}
        names |= {volume[kind][key] for volume in volumes for kind, key in _BY_NAME.items() if kind in volume}
        names |= {each.pod["spec"]["serviceAccountName"]} if "serviceAccountName" in each.pod["spec"] else set()
        yield from (f"{name}: nobody makes it" for name in sorted(names - known - MADE_ELSEWHERE.keys()))


_BY_NAME = {"configMap": "name", "secret": "secretName"}


# -- what runs, and how it is watched


def one_image(objects: Objects) -> Problems:
    """A migration of another version than the service would bring the wrong schema."""
    images = {each.container["image"] for each in ours(objects)}
    if len(images) != 1:
        yield f"images: {', '.join(sorted(images)) or 'none'}"


def commands_are_known(objects: Objects) -> Problems:
    """What containers run is a command of the service, with options it has."""
    yield from (f"command: {problem}" for each in ours(objects) if (problem := _unknown(each.container["args"])))


def _unknown(arguments: list[str]) -> str:
    command: Any = typer.main.get_command(app)
    try:
        with command.context_class(command) as context:
            name, found, rest = command.resolve_command(context, list(arguments))
            found.make_context(name, rest, parent=context)
    except Exception as error:  # noqa: BLE001 - typer's own, in a module that is not public
        return str(getattr(error, "format_message", error.__str__)())
    return ""


def distribution_comes_first(objects: Objects) -> Problems:
    """Tables are distributed after the migration, and no pod connects before: `distribute` would refuse."""
    jobs = [each for each in ours(objects) if each.container["args"][0] == "distribute" and not each.is_first]
    for job in jobs:
        if ["migrate"] not in _arguments_before(job):
            yield "distribution: before the migration"
        for each in standing(objects):
            if ["distribute", "--check"] not in _arguments_before(each):
                yield "distribution: the pods do not wait for it"


def _arguments_before(each: Ours) -> list[list[str]]:
    return [container["args"] for container in each.pod["spec"].get("initContainers", ())]


def probes_ask_the_right_thing(objects: Objects) -> Problems:
    """Each probe asks under its own path; that of liveness, which restarts, never for the database."""
    for each in servers(objects):
        for name, service in PROBES.items():
            if (probe := each.container.get(name)) is None:
                yield f"{name}: none"
            elif (asked := PATHS.get(probe.get("httpGet", {}).get("path"))) != service:
                yield f"{name}: asks for {asked!r}"


def probes_reach_it(objects: Objects) -> Problems:
    """The kubelet asks on the address of the pod, by HTTP."""
    for each in servers(objects):
        listen = each.settings.metrics_listen
        if listen is None or listen.is_local:
            yield f"probe: nothing answers the kubelet on {listen}"
        requests = [each.container.get(name, {}).get("httpGet", {}) for name in PROBES]
        ports = {request["port"] for request in requests if request}
        yield from (f"probe: {port} is not the port of the probes" for port in sorted(ports - {"metrics"}))


def ports_agree(objects: Objects) -> Problems:
    """Settings, container, scraping, Service and NetworkPolicy mean the same ports."""
    for each in servers(objects):
        annotations = each.pod["metadata"].get("annotations", {})
        assert each.settings.metrics_listen
        expected = {"metrics": each.settings.metrics_listen.port}
        for name, addresses in (("grpc", each.settings.listen), ("http", each.settings.http_listen)):
            if addresses and not addresses[0].is_unix:
                expected[name] = addresses[0].port
        if each.ports != expected:
            yield f"ports: {each.ports}, but the settings say {expected}"
        if annotations.get("prometheus.io/port") != str(expected["metrics"]):
            yield f"ports: Prometheus is sent to {annotations.get('prometheus.io/port')}"
        for name in _wanted(objects) - each.ports.keys():
            yield f"ports: the container has no {name}"


def _wanted(objects: Objects) -> set[Any]:
    """Ports that others name."""
    services = [each for each in of_kind(objects, "Service") if not is_of_database(each)]
    targets = {entry["targetPort"] for each in services for entry in each["spec"]["ports"]}
    policies = [each for each in of_kind(objects, "NetworkPolicy") if not is_of_database(each)]
    rules = [rule for each in policies for rule in each["spec"]["ingress"]]
    monitors = [each["spec"]["podMetricsEndpoints"] for each in of_kind(objects, "PodMonitor")]
    targets |= {entry["port"] for entries in monitors for entry in entries}
    return targets | {entry["port"] for rule in rules for entry in rule["ports"]}


def scrapes_have_the_job(objects: Objects) -> Problems:
    """The operator would call the job after the namespace and the monitor, and no alert would fire."""
    for monitor in of_kind(objects, "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            rules = endpoint.get("relabelings", ())
            jobs = [rule.get("replacement") for rule in rules if rule.get("targetLabel") == "job"]
            yield from [] if jobs == [JOB] else [f"PodMonitor: the job is {jobs}"]


def routes_lead_somewhere(objects: Objects) -> Problems:
    """A route names Services that are there, by a port they have, and services of the contract."""
    services = of_kind(objects, "Service")
    ports = {(each["metadata"]["name"], entry["port"]) for each in services for entry in each["spec"]["ports"]}
    for rule in (rule for each in of_kind(objects, "GRPCRoute") for rule in each["spec"]["rules"]):
        named_ports = {(backend["name"], backend["port"]) for backend in rule["backendRefs"]}
        yield from (f"route: leads to {name}:{port}" for name, port in sorted(named_ports - ports))
        asked = {match["method"]["service"] for match in rule["matches"]}
        yield from (f"route: {name} is not served" for name in sorted(asked - {*SERVICES, HEALTH}))


# -- how pods are found, replaced and kept in


def selectors_match(objects: Objects) -> Problems:
    """Whoever selects pods selects some, a Service those of one owner alone."""
    for each in of_kind(objects, "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
        if each["kind"] == "NetworkPolicy" and is_of_database(each):
            continue  # its pods are made elsewhere
        name, selector = f"{each['kind']} {each['metadata']['name']}", _selector(each)
        found = [owner for owner in of_kind(objects, *OWNERS) if selector.items() <= _labels(owner).items()]
        if not selector or not found or (each["kind"] == "Deployment" and each not in found):
            yield f"{name}: selects nothing"
        elif len(found) > 1 and each["kind"] != "NetworkPolicy":
            yield f"{name}: selects pods of {len(found)} owners"


def others_mean_the_deployment(objects: Objects) -> Problems:
    """Pods are spread among their own kind, and the autoscaler has something to scale."""
    for each in of_kind(objects, "Deployment"):
        for spread in each["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
            if not spread["labelSelector"]["matchLabels"].items() <= _labels(each).items():
                yield "spread: over other pods"
    for each in of_kind(objects, "HorizontalPodAutoscaler"):
        target = each["spec"]["scaleTargetRef"]
        yield from () if named(objects, target["kind"], target["name"]) else ["autoscaler: of nothing"]


def _labels(owner: Object) -> dict[str, str]:
    found: dict[str, str] = owner["spec"]["template"]["metadata"]["labels"]
    return found


def _selector(each: Object) -> dict[str, str]:
    spec = each["spec"]
    found: Object = spec.get("podSelector") or spec["selector"]
    labels: dict[str, str] = found.get("matchLabels", {}) if each["kind"] != "Service" else found
    return labels


def nobody_is_privileged(objects: Objects) -> Problems:
    """What the restricted profile of Kubernetes asks, and a file system that cannot be changed."""
    for owner in of_kind(objects, *OWNERS):
        pod = owner["spec"]["template"]["spec"]
        for container in containers(owner):
            context = pod.get("securityContext", {}) | container.get("securityContext", {})
            for key, value in _RESTRICTED.items():
                if context.get(key) != value:
                    yield f"{container['name']}: {key} is {context.get(key)}"
            if is_ours(container) and (UID, UID) != (context.get("runAsUser"), context.get("runAsGroup")):
                yield f"{container['name']}: runs as {context.get('runAsUser')}:{context.get('runAsGroup')}"
        for key in ("automountServiceAccountToken", "enableServiceLinks"):
            yield from [f"{owner['metadata']['name']}: {key}"] if pod.get(key) is not False else ()


_RESTRICTED: dict[str, Any] = {
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def time_to_end(objects: Objects) -> Problems:
    """SIGKILL comes after the grace of running calls and what follows it."""
    for each in servers(objects):
        needed = each.settings.grace_seconds + TO_CLOSE_UP
        given = each.pod["spec"].get("terminationGracePeriodSeconds", 30)
        if given <= needed:
            yield f"terminationGracePeriodSeconds: {given}, must be more than {needed:g}"


def rollouts_lose_nothing(objects: Objects) -> Problems:
    """A pod goes when its successor is ready, and all of them together leave connections to the database."""
    for each in standing(objects):
        rolling = each.owner["spec"].get("strategy", {}).get("rollingUpdate", {})
        if rolling.get("maxUnavailable") != 0:
            yield f"rollout: maxUnavailable is {rolling.get('maxUnavailable')}"
        for scaler in of_kind(objects, "HorizontalPodAutoscaler"):
            pods = scaler["spec"]["maxReplicas"] + rolling.get("maxSurge", 1)
            if (taken := pods * each.settings.workers * each.settings.pool_size) > CONNECTIONS:
                yield f"rollout: {pods} pods take {taken} connections"


def sockets_are_shared(objects: Objects) -> Problems:
    """The folder of a Unix socket is a volume that every container of the pod has and its group may use."""
    for each in ours(objects):
        addresses = (*each.settings.listen, *each.settings.http_listen)
        for path in filter(None, (address.path for address in addresses)):
            folder = str(path.parent)
            emptied = {volume["name"] for volume in each.pod["spec"].get("volumes", ()) if "emptyDir" in volume}
            for container in containers(each.owner):
                there = {mount["mountPath"] for mount in container.get("volumeMounts", ()) if mount["name"] in emptied}
                yield from () if folder in there else [f"{container['name']}: has no {folder}"]
            if each.pod["spec"]["securityContext"].get("fsGroup") != UID:
                yield "fsGroup: not that of the socket"


# What the others take for granted.
_FIRST: tuple[Callable[[Objects], Problems], ...] = (references_exist, settings_exist, settings_are_taken)
_THEN: tuple[Callable[[Objects], Problems], ...] = (
    files_are_mounted,
    policy_is_accepted,
    retention_is_accepted,
    one_image,
    commands_are_known,
    distribution_comes_first,
    probes_ask_the_right_thing,
    probes_reach_it,
    ports_agree,
    scrapes_have_the_job,
    routes_lead_somewhere,
    selectors_match,
    others_mean_the_deployment,
    nobody_is_privileged,
    time_to_end,
    rollouts_lose_nothing,
    sockets_are_shared,
)


def problems(objects: Objects) -> list[str]:
    """What does not fit."""
    found = [problem for check in _FIRST for problem in check(objects)]
    return found or [problem for check in _THEN for problem in check(objects)]
