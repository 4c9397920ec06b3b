"""compose.yaml: what its parts say of each other is so, and nobody but this machine reaches them."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from server.settings.addresses import Address
from server.settings.service import Settings, load
from tests.support.commands import ROOT

FILE = ROOT / "compose.yaml"
PROJECT: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = PROJECT["services"]
OURS = SERVICES["service"]
FOLDER = ROOT / "deploy" / "compose"
PARSER = "github.com/compose-spec/compose-go/v2/cmd@v2.16.2"  # the one of Docker Compose
# What the images of others serve, by their documentation.
PORTS = {"postgres": {5432}, "prometheus": {9090}, "grafana": {3000}, "jaeger": {4318, 13133, 16686}}


def read(path: str) -> Any:
    """A file of the folder."""
    return yaml.safe_load((FOLDER / path).read_text(encoding="utf-8"))


def mounts(service: dict[str, Any]) -> dict[PurePosixPath, Path]:
    """The files of the repository that a container sees, by where it sees them."""
    found = [each.split(":") for each in service.get("volumes", ())]
    return {PurePosixPath(target): ROOT / source for source, target, *_ in found if source not in PROJECT["volumes"]}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of the service, as its container reads them."""
    image = re.findall(r"(CONVERSATIONS_\w+)=(\S+)", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    for name, value in [*image, *OURS["environment"].items()]:
        monkeypatch.setenv(name, value)
    return load()


def served(settings: Settings) -> dict[str, set[int]]:
    """The ports that each container serves to others."""
    assert settings.metrics_listen
    ours = {*settings.listen, *settings.http_listen, settings.metrics_listen}
    assert all(address.is_wildcard for address in ours)
    return {**PORTS, "service": {address.port for address in ours}}


def test_its_settings_are_taken(settings: Settings) -> None:
    """Each is one of the service; the database is the one that stands beside it."""
    assert settings.database_url
    database = SERVICES["postgres"]["environment"]
    user, password = database["POSTGRES_USER"], database["POSTGRES_PASSWORD"]
    assert f"postgresql://{user}:{password}@postgres/{user}" == settings.database_url.get_secret_value()
    assert settings.tracing
    assert settings.reflection


def test_who_is_named_serves_that_port(settings: Settings) -> None:
    """Each address that a part is told names a part, and a port that it serves."""
    others = [value for name, value in OURS["environment"].items() if name.startswith("OTEL_")]
    (scraped,) = read("prometheus.yaml")["scrape_configs"]
    (source,) = read("grafana/datasources/prometheus.yaml")["datasources"]
    for address in (*others, *scraped["static_configs"][0]["targets"], source["url"]):
        name, _, port = address.removeprefix("http://").partition(":")
        assert int(port) in served(settings)[name], address
    assert "conversations" == scraped["job_name"]
    assert f":{settings.metrics_listen.port}" in scraped["static_configs"][0]["targets"][0]  # type: ignore[union-attr]


def test_ports_are_open_to_this_machine_only(settings: Settings) -> None:
    """Everything is anonymous, so nothing listens on another address than loopback; the head of the file names each."""
    told = set(re.findall(r"127\.0\.0\.1:\d+", FILE.read_text(encoding="utf-8").partition("name:")[0]))
    published = set()
    for name, service in SERVICES.items():
        for each in service.get("ports", ()):
            address, _, target = each.rpartition(":")
            assert Address.parse(address).is_local
            assert int(target) in served(settings)[name], each
            published.add(address)
    assert published == told


def test_images_have_a_version() -> None:
    """A version, not a moving name; ours is the one of this source."""
    images = {name: service["image"].rpartition(":") for name, service in SERVICES.items()}
    assert [] == [name for name, (_, _, tag) in images.items() if not re.fullmatch(r"v?\d+(\.\d+)+", tag)]
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    assert ("conversation-service", version[1]) == images["service"][::2]


def test_the_viewer_of_traces_is_the_same() -> None:
    """docs/operations.md starts it alone, on the port where the service sends its traces by default."""
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^docker run .*", page, re.MULTILINE)
    assert SERVICES["jaeger"]["image"] == command.rpartition(" ")[2]
    assert ["127.0.0.1:16686:16686", "127.0.0.1:4318:4318"] == re.findall(r"-p (\S+)", command)


def test_everything_is_checked_for_health(settings: Settings) -> None:
    """`--wait` returns when all parts work; what asks by HTTP asks itself, on a port that it serves."""
    for name, service in SERVICES.items():
        words = service["healthcheck"]["test"]
        assert "CMD" == words[0], name
        for port in re.findall(r"http://127\.0\.0\.1:(\d+)/", shlex.join(words)):
            assert int(port) in served(settings)[name]
    assert OURS["depends_on"].keys() == {"postgres"}


def test_files_are_there() -> None:
    """Docker makes an empty folder of a path that is not there."""
    assert [] == [path for service in SERVICES.values() for path in mounts(service).values() if not path.exists()]


def test_grafana_finds_the_dashboard() -> None:
    """Provider and start page lead to the file that is mounted."""
    mounted = mounts(SERVICES["grafana"])
    (dashboard,) = [path for path, source in mounted.items() if source.name == "dashboard.json"]
    assert json.loads(mounted[dashboard].read_text(encoding="utf-8"))["panels"]
    (provider,) = read("grafana/dashboards/conversations.yaml")["providers"]
    assert dashboard.parent == PurePosixPath(provider["options"]["path"])
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert dashboard == PurePosixPath(home)
    (source,) = read("grafana/datasources/prometheus.yaml")["datasources"]
    assert ("prometheus", True) == (source["type"], source["isDefault"])


@pytest.mark.tool("promtool")
def test_prometheus_reads_its_files(tmp_path: Path) -> None:
    """The configuration and the rules, where the container has them."""
    mounted = mounts(SERVICES["prometheus"])
    for target, source in mounted.items():
        shutil.copy(source, tmp_path / target.name)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    assert re.search(r"alerts\.yaml\s+SUCCESS: \d\d rules found", done.stdout), done.stdout


@pytest.mark.tool("go")
def test_compose_reads_it() -> None:
    """The parser of Docker Compose takes the file, and understands what is written here as it is meant."""
    done = subprocess.run(
        ["go", "run", PARSER, "-format", "json", FILE.name], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stderr
    services = json.loads(done.stdout)["services"]
    assert SERVICES.keys() == services.keys()
    assert {"127.0.0.1"} == {port["host_ip"] for each in services.values() for port in each.get("ports", ())}
    assert all("test" in each["healthcheck"] for each in services.values())
    bound = [each for one in services.values() for each in one.get("volumes", ()) if each["type"] == "bind"]
    assert {True} == {each["read_only"] for each in bound}
    assert str(ROOT) == services["service"]["build"]["context"]
