"""deploy/helm: rendered by Helm, held against the schemas of Kubernetes, the service itself, and the manifests."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from server import __version__
from server.settings.service import Settings
from tests.support import custom_resources
from tests.support.manifests import Object, Objects, named, of_kind, ours, problems, render_objects

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm"
CASES = tuple(sorted(path.stem for path in (CHART / "ci").iterdir()))
VERSIONS = ("1.29", "1.35", "1.36", "1.37")  # the oldest that the chart permits, and those that Kubernetes supports
SCHEMA = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
OF_THE_CHART = {
    *(
        "database_url",
        "pgbouncer_url",
        "data_dir",
        "listen",
        "metrics_listen",
        "policy_file",
        "retention_file",
        "migrate",
        "profile",
    ),
    *("tls_certificate", "tls_key", "tls_client_ca", "workers", "http_listen"),
}

pytestmark = pytest.mark.tool("helm")


def run_helm(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """What Helm says."""
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False, timeout=60)


@cache
def template(case: str, *more: str, version: str = VERSIONS[-1], release: str = "conversations") -> str:
    """What Helm would install; ``more``: options of Helm."""
    values = ("--values", str(CHART / "ci" / f"{case}.yaml"))
    options = ("--namespace", "conversations", "--kube-version", f"{version}.0")
    done = run_helm("template", release, str(CHART), *values, *options, *more)
    assert not done.returncode, done.stderr
    return done.stdout


def objects_of(case: str, *more: str, **how: str) -> Objects:
    """The objects, to look at or to spoil."""
    return [each for each in yaml.safe_load_all(template(case, *more, **how)) if each]


@pytest.mark.parametrize("case", CASES)
def test_lint(case: str) -> None:
    """Helm finds nothing to complain of."""
    done = run_helm("lint", "--strict", "--quiet", str(CHART), "--values", str(CHART / "ci" / f"{case}.yaml"))
    assert (0, "") == (done.returncode, done.stdout.strip())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES)
def test_the_schema_of_kubernetes(case: str, version: str) -> None:
    """Each object is one of that version of Kubernetes, without a field it does not know."""
    for each in objects_of(case, version=version):
        if not custom_resources.is_custom(each):
            kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.tool("go")
def test_the_schema_of_custom_resources() -> None:
    """Each custom resource is one that the operator takes."""
    custom = [each for each in objects_of("everything") if custom_resources.is_custom(each)]
    assert ["PodMonitor", "PrometheusRule"] == sorted(each["kind"] for each in custom)
    assert {} == {each["kind"]: found for each in custom if (found := custom_resources.mistakes(each))}


@pytest.mark.parametrize("case", CASES)
def test_it_fits_the_service(case: str) -> None:
    """Settings, probes, ports, selectors, rights, times and the policy are those of this version of the service."""
    assert (1 if case == "anonymous" else 2) == len(ours(objects_of(case)))
    assert [] == problems(objects_of(case))


@pytest.mark.parametrize(
    "option, complaint",
    [
        ("terminationGracePeriodSeconds=35", "35, must be more than 35"),
        ("settings.pool_size=40", "pods take"),
        ("settings.pool_size=many", "settings: Input should be a valid integer"),
        ("policy=- permit: {actions: creat}", "creat"),
        ("database.secretName=x", "x: nobody makes it"),
        ("tls.secretName=y", "y: nobody makes it"),
    ],
)
def test_a_mistake_is_found(option: str, complaint: str) -> None:
    """The checks see what the values do."""
    found = problems(objects_of("everything", "--set", option))
    assert any(complaint in each for each in found), found


@pytest.mark.parametrize("case, overlay", [("jwt", "prod"), ("mtls", "prod-mtls")])
def test_it_is_what_the_manifests_are(case: str, overlay: str) -> None:
    """The chart and the manifests run the same pods, under the same rules."""
    chart, manifests = objects_of(case), render_objects(f"overlays/{overlay}")
    for kind in ("Deployment", "Job", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "Service"):
        (one,), (other,) = of_kind(chart, kind), of_kind(manifests, kind)
        assert plain(other["spec"]) == plain(one["spec"]), kind
    assert settings_of(chart) == settings_of(manifests)
    files = [named(each, "ConfigMap", "conversations-policy")["data"] for each in (chart, manifests)]
    for name in ("policy.yaml", "retention.yaml"):
        assert yaml.safe_load(files[0][name]) == yaml.safe_load(files[1][name]), name


def plain(value: Any) -> Any:
    """A part of an object, without what differs on purpose: labels and annotations of Helm, names with a hash."""
    if isinstance(value, list):
        return sorted((plain(each) for each in value), key=str)  # volumes come in another order
    if not isinstance(value, dict):
        return "conversations-settings" if str(value).startswith("conversations-settings-") else value
    return {key: plain(each) for key, each in value.items() if key not in _OF_HELM}


_OF_HELM = {
    *("app.kubernetes.io/instance", "app.kubernetes.io/version", "app.kubernetes.io/managed-by", "helm.sh/chart"),
    *("checksum/settings", "imagePullPolicy"),
}


def settings_of(objects: Objects) -> dict[str, str]:
    """The variables of the service."""
    (server,) = [each for each in ours(objects) if each.container["args"] == ["serve"]]
    return server.environment


def test_alerts_and_dashboard_are_the_files_of_this_repository() -> None:
    """Helm does not take their braces for its own."""
    objects = objects_of("everything")
    alerts = yaml.safe_load((CHART.parent / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))
    assert alerts == of_kind(objects, "PrometheusRule")[0]["spec"]
    dashboard = json.loads((CHART.parent / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    assert dashboard == json.loads(named(objects, "ConfigMap", "conversations-dashboard")["data"]["conversations.json"])


def test_a_package_has_everything(tmp_path: Path) -> None:
    """The files that the chart shares with the rest of the repository are in its package."""
    done = run_helm("package", str(CHART), "--destination", str(tmp_path))
    assert not done.returncode, done.stderr
    (package,) = tmp_path.iterdir()
    values = ("--values", str(CHART / "ci" / "everything.yaml"), "--kube-version", f"{VERSIONS[-1]}.0")
    rendered = run_helm("template", "conversations", str(package), "--namespace", "conversations", *values)
    assert template("everything") == rendered.stdout


def test_the_values_arrive() -> None:
    """What an operator adds is in the pods of the service, and what both need also in those of the migration."""
    objects = objects_of("everything")
    server, job = (each.owner["spec"]["template"] for each in ours(objects))
    assert {"example.com/tier": "backend"}.items() <= server["metadata"]["labels"].items()
    for pod in (server["spec"], job["spec"]):
        assert [{"name": "registry"}] == pod["imagePullSecrets"]
        assert ("high", {"kubernetes.io/arch": "amd64"}) == (pod["priorityClassName"], pod["nodeSelector"])
        assert pod["containers"][0]["image"].startswith("registry.example.com:5000/conversation-service@sha256:")
        assert "database-ca" in {volume["name"] for volume in pod["volumes"]}
        assert "PGSSLROOTCERT" in {variable["name"] for variable in pod["containers"][0]["env"]}
    assert "16777216" == settings_of(objects)["CONVERSATIONS_MAX_MESSAGE_BYTES"]


def test_two_releases_in_a_namespace() -> None:
    """Each selects its own pods alone, and no name is given twice."""
    one, two = (objects_of("jwt", release=release) for release in ("a", "b"))
    names = [(each["kind"], each["metadata"]["name"]) for each in (*one, *two)]
    assert len(names) == len(set(names))
    labels = of_kind(one, "Deployment")[0]["spec"]["template"]["metadata"]["labels"]
    for each in of_kind(two, "Service", "NetworkPolicy", "PodDisruptionBudget", "Deployment"):
        spec = each["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        assert not selector.get("matchLabels", selector).items() <= labels.items()


def test_a_job_for_each_migration() -> None:
    """A change of what it runs renames the Job, because Kubernetes cannot change it; a setting does not concern it."""
    names = [
        of_kind(objects_of("jwt", *more), "Job")[0]["metadata"]["name"]
        for more in ((), ("--set", "image.tag=0.2.0"), ("--set", "settings.pool_size=9"))
    ]
    assert names[0] != names[1]
    assert names[0] == names[2]


def test_a_change_of_settings_replaces_the_pods_and_one_of_the_policy_does_not() -> None:
    """Settings are read at startup; the policy is read again."""
    pods = [
        of_kind(objects_of("jwt", *more), "Deployment")[0]["spec"]["template"]
        for more in ((), ("--set", "settings.pool_size=9"), ("--set", "policy=[]"))
    ]
    assert pods[0] != pods[1]
    assert pods[0] == pods[2]


@pytest.mark.parametrize(
    "option, complaint",
    [
        ("image.tga=1", "tga"),
        ("settings.poolsize=1", "poolsize"),
        ("settings.listen=x", "listen"),
        ("autoscaling.minReplicas=many", "minReplicas"),
        ("image.digest=sha256:1", "digest"),
    ],
)
def test_wrong_values_are_refused(option: str, complaint: str) -> None:
    """Helm names the value before anything is installed."""
    values = ("--values", str(CHART / "ci" / "jwt.yaml"), "--kube-version", "1.37.0")
    done = run_helm("template", str(CHART), *values, "--set", option)
    assert done.returncode
    assert complaint in done.stderr


def test_without_identity_nothing_is_rendered() -> None:
    """The service would refuse to start; Helm says so before."""
    done = run_helm("template", str(CHART), "--kube-version", "1.37.0")
    assert done.returncode
    assert "settings.identity: say who callers are" in done.stderr


def test_every_value_is_described() -> None:
    """The schema is the reference of the values: it has all of them, with a sentence each, and no others."""
    found = dict(described(SCHEMA))
    assert set(leaves(VALUES, SCHEMA)) == found.keys() - {"global"}
    assert [] == [name for name, text in found.items() if not text.endswith(".")]


def described(schema: Object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The path and the description of each value."""
    for name, each in schema["properties"].items():
        yield f"{prefix}{name}", each.get("description", "")
        if "properties" in each:
            yield from described(each, f"{prefix}{name}.")


def leaves(values: Object, schema: Object, prefix: str = "") -> Iterator[str]:
    """The path of each value."""
    for name, each in values.items():
        yield f"{prefix}{name}"
        if "properties" in (inner := schema["properties"].get(name, {})):
            yield from leaves(each, inner, f"{prefix}{name}.")


def test_every_setting_can_be_set() -> None:
    """Those that the chart sets itself cannot."""
    assert (
        sorted(Settings.model_fields.keys() - OF_THE_CHART) == SCHEMA["properties"]["settings"]["propertyNames"]["enum"]
    )


@pytest.mark.parametrize("command", ["lint", "template"])
def test_the_page_is_right(command: str) -> None:
    """What docs/kubernetes.md tells to run without a cluster works as it stands there."""
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (line,) = re.findall(rf"^helm ({command} .*)$", page, re.MULTILINE)
    done = subprocess.run(["helm", *shlex.split(line)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_the_version() -> None:
    """The chart installs this version of the service."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    assert (__version__, __version__) == (chart["version"], chart["appVersion"])
