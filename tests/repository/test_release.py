"""What `make release` builds: the same bytes each time, complete, and installable by itself."""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from conversations.v1.conversations_service_pb2 import CreateConversationRequest
from conversations_client import connect
from conversations_client.ephemeral import ephemeral_service
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from server import __version__
from supply.archives import read_tar, write_tar
from supply.proto_bundle import DESCRIPTORS
from supply.release import build
from tests.support.commands import ROOT, program_path
from tests.support.pages import code_blocks

MIB = 2**20
USES = """
from conversations_client import connect
from conversations.v1.conversations_service_pb2 import CreateConversationRequest

async def main() -> str:
    async with connect("127.0.0.1:1") as client:
        made = await client.conversations.CreateConversation(CreateConversationRequest())
        return made.owner + str(made.nothing)
"""


def project(folder: str) -> dict[str, Any]:
    """What a distribution says of itself."""
    found: dict[str, Any] = tomllib.loads((ROOT / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def test_all_have_one_version() -> None:
    """Server, client, image and changelog name the same one."""
    image = re.findall(r"^ARG VERSION=(.*)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    logged = re.findall(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [__version__] * 4 == [project(".")["version"], project("client")["version"], *image, logged[0]]


def test_the_client_needs_what_the_server_needs() -> None:
    """No package more, and at the same lowest versions: both have the messages from one generator."""
    needed = project("client")["dependencies"]
    assert ["googleapis-common-protos", "grpcio", "protobuf"] == [re.split("[<>=]", each)[0] for each in needed]
    assert set(needed) <= set(project(".")["dependencies"])


def test_an_archive_has_the_same_bytes(tmp_path: Path) -> None:
    """Whatever the order in which its files are given."""
    write_tar(tmp_path / "a.tar.gz", {"x/b": b"2", "x/a": b"1"}, 1_000_000_000)
    write_tar(tmp_path / "b.tar.gz", {"x/a": b"1", "x/b": b"2"}, 1_000_000_000)
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    assert {"x/a": b"1", "x/b": b"2"} == read_tar(tmp_path / "a.tar.gz")


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is built of the repository as it is."""
    folder = tmp_path_factory.mktemp("release")
    build(folder)
    return folder


@pytest.mark.slow
@pytest.mark.tool("grpcurl")
def test_it_has_the_same_bytes(release: Path, tmp_path: Path) -> None:
    """A second build, by somebody with another umask, language and time zone, later."""
    variables = {**os.environ, "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONHASHSEED": "7", "HOME": str(tmp_path)}
    command = (sys.executable, "-m", "supply.release", str(tmp_path / "again"))
    told = subprocess.run(command, cwd=ROOT, env=variables, umask=0o077, check=True, capture_output=True, text=True)
    assert contents(release) == contents(tmp_path / "again")
    assert told.stdout == (release / "SHA256SUMS").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.tool("grpcurl")
def test_what_is_in_it(release: Path) -> None:
    """Each artefact that docs/releases.md lists, with the checksums of all."""
    page = (ROOT / "docs" / "releases.md").read_text(encoding="utf-8")
    listed = {name.replace("VERSION", __version__) for name in re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)}
    found = contents(release)
    assert listed - {name for name in listed if name.endswith((".cdx.json", ".oci.tar"))} == set(found)
    sums = dict(line.split("  ")[::-1] for line in found.pop("SHA256SUMS").decode().splitlines())
    assert sums == {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.tool("grpcurl", "helm")
def test_the_chart_is_what_helm_packages(release: Path, tmp_path: Path) -> None:
    """The same files with the same content; Helm prints Chart.yaml again, and takes the package as its own."""
    run("helm", "package", str(ROOT / "deploy" / "helm"), "--destination", str(tmp_path), folder=tmp_path)
    (ours,), (theirs,) = release.glob("conversations-*.tgz"), tmp_path.iterdir()
    assert ours.name == theirs.name
    packed, expected = read_tar(ours), read_tar(theirs)
    chart = "conversations/Chart.yaml"
    assert yaml.safe_load(expected.pop(chart)) == yaml.safe_load(packed.pop(chart))
    assert expected == packed
    values = ("--values", str(ROOT / "deploy" / "helm" / "ci" / "everything.yaml"), "--kube-version", "1.37.0")
    run("helm", "lint", "--strict", str(ours), *values, folder=tmp_path)


@pytest.fixture
def bundle(release: Path, tmp_path: Path) -> Path:
    """The unpacked archive of .proto files."""
    (archive,) = release.glob("*-protos-*.tar.gz")
    subprocess.run(("tar", "xzf", str(archive)), cwd=tmp_path, check=True)
    (folder,) = tmp_path.iterdir()
    return folder


@pytest.mark.slow
@pytest.mark.tool("grpcurl")
def test_the_protos_are_the_contract(bundle: Path) -> None:
    """Compiled, they are the files that the service serves; comments and options of languages aside, imports too."""
    assert printed_commands(bundle)[0].startswith("protoc ")
    run("protoc", "-I.", "--include_imports", "--descriptor_set_out=all.binpb", *names_of(bundle), folder=bundle)
    found = descriptors(bundle / "all.binpb")
    expected = descriptors(ROOT / "generated" / "conversations" / "v1" / "descriptors.binpb")
    names = {str(path.relative_to(bundle)) for path in bundle.rglob("*.proto")}
    assert {name for name in expected if not name.startswith("google/protobuf/")} == names
    assert {name: expected[name] for name in names} == {name: found[name] for name in names}


def test_code_for_java_fits_the_package_of_protovalidate() -> None:
    """Code from our descriptors names the classes that protovalidate publishes for Java."""
    (file,) = [
        each
        for each in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
        if each.name == "buf/validate/validate.proto"
    ]
    assert "build.buf.validate" == file.options.java_package


def names_of(bundle: Path) -> list[str]:
    """The import paths of its files."""
    return sorted(str(path.relative_to(bundle)) for path in bundle.rglob("*.proto"))


def descriptors(file: Path) -> dict[str, str]:
    """What each file of a descriptor set declares, as text."""
    found = {}
    for each in FileDescriptorSet.FromString(file.read_bytes()).file:
        each.ClearField("source_code_info")
        for field in fields(each):
            field.ClearField("json_name")  # our descriptors have none
        found[each.name] = str(each)
    return found


def fields(file: Any) -> Iterator[Any]:
    """All fields that a file declares."""
    yield from file.extension
    messages = list(file.message_type)
    for message in messages:  # it grows meanwhile
        yield from (*message.field, *message.extension)
        messages.extend(message.nested_type)


def printed_commands(bundle: Path) -> list[str]:
    """The commands of its README."""
    (blocks,) = code_blocks(bundle / "README.md").values()
    return blocks


@pytest.mark.slow
@pytest.mark.tool("grpcurl")
def test_the_protos_as_they_are(bundle: Path) -> None:
    """The commands that the README of the archive prints generate code, without another file."""
    (bundle / "generated").mkdir()
    plugin = "version: v2\nplugins:\n  - local: protoc-gen-mypy\n    out: generated\n"
    (bundle / "buf.gen.yaml").write_text(plugin, encoding="utf-8")
    protoc, buf = printed_commands(bundle)
    for command in (protoc, buf):
        run("bash", "-euc", command, folder=bundle)
    made = {path.suffix for path in (bundle / "generated" / "conversations" / "v1").iterdir()}
    assert {".py", ".pyi"} == made
    assert not (bundle / "generated" / "google").exists()


@pytest.mark.slow
@pytest.mark.tool("grpcurl")
async def test_the_server_as_the_readme_installs_it(release: Path, tmp_path: Path) -> None:
    """The printed commands give a service that serves and answers, without the repository."""
    server, client = code_blocks(ROOT / "README.md")["Install"]
    home, python = tmp_path / "service", sys.executable
    script = server.replace("/opt/conversation-service", str(home)).replace("dist/", f"{release}/")
    *install, start = script.replace("python3 ", f"{python} ", 1).splitlines()
    constraints = {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "PIP_QUIET": "1"}
    run("bash", "-euc", "\n".join(install), folder=tmp_path, **constraints)
    program, serve = start.split()
    assert "serve" == serve
    with ephemeral_service([program], log_level="error") as service:
        async with connect(service.address) as connected:
            assert (await connected.conversations.CreateConversation(CreateConversationRequest())).id
    assert (release / client.split("dist/")[1].strip()).is_file()


@pytest.mark.slow
@pytest.mark.tool("grpcurl")
def test_the_client_is_all_that_a_client_needs(release: Path, tmp_path: Path) -> None:
    """Installed alone it brings few packages, little but gRPC, and its types; it needs nothing of the server."""
    venv.create(tmp_path / "venv", with_pip=False)
    python, (wheel,) = tmp_path / "venv/bin/python", release.glob("*client*.whl")
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check")
    run(*pip, "-c", str(ROOT / "constraints.txt"), str(wheel), folder=tmp_path)
    (packages,) = (tmp_path / "venv").glob("lib/*/site-packages")
    names = {path.name.partition("-")[0].lower() for path in packages.glob("*.dist-info")}
    assert {"conversation_service_client", "googleapis_common_protos", "grpcio", "protobuf"} == names - {
        "typing_extensions"  # of grpcio
    }
    sizes = {path.name: sum(each.stat().st_size for each in files(path)) for path in packages.iterdir()}
    assert sum(sizes.values()) - sizes["grpc"] < 10 * MIB
    run(str(python), "-I", "-W", "error", "-c", "import conversations_client", folder=tmp_path)
    stubs = [f"{name}=={version(name)}" for name in ("types-grpcio", "types-protobuf")]
    run(*pip, *stubs, folder=tmp_path)
    (tmp_path / "uses.py").write_text(USES, encoding="utf-8")
    command = (sys.executable, "-m", "mypy", "--strict", f"--python-executable={python}", "uses.py")
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=without_paths())
    assert '"Conversation" has no attribute "nothing"' in checked.stdout
    assert "Found 1 error in 1 file" in checked.stdout


def files(path: Path) -> list[Path]:
    """A file, or the files below a folder."""
    return [each for each in (path, *path.rglob("*")) if each.is_file()]


def without_paths() -> dict[str, str]:
    """This environment, without the packages of this repository."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "MYPYPATH"}}


def run(*command: str, folder: Path, **more: str) -> None:
    """Runs a command that succeeds, with the programs of this Python on its path."""
    variables = without_paths() | {"PATH": program_path()} | more
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stdout + done.stderr
