"""The contract and everything that it imports, as .proto files."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from supply.installed import ROOT

PROTO = ROOT / "proto"
DESCRIPTORS = ROOT / "generated" / "conversations" / "v1" / "descriptors.binpb"
GOOGLEAPIS = Path(field_behavior_pb2.__file__).parents[2]
BUILT_IN = "google/protobuf/"  # protoc and buf bring these themselves
README = ROOT / "proto" / "README.md"


def proto_files() -> dict[str, bytes]:
    """Returns the files by their import paths, with a README that says how to generate code of them."""
    files = {"README.md": README.read_bytes(), "LICENSE": (ROOT / "LICENSE").read_bytes()}
    for name in _needed():
        own, googles = PROTO / name, GOOGLEAPIS / name
        found = next((path for path in (own, googles) if path.is_file()), None)
        files[name] = found.read_bytes() if found else _printed(name)
    return files


def _needed() -> Iterator[str]:
    files = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file
    return (file.name for file in files if not file.name.startswith(BUILT_IN))


def _printed(name: str) -> bytes:
    """A file that is there as a descriptor only, printed by grpcurl: protovalidate for Python ships no .proto."""
    grpcurl = shutil.which("grpcurl")
    if grpcurl is None:
        sys.exit("grpcurl is missing: python -m tests.support.tools installs it")
    with TemporaryDirectory() as folder:
        command = (grpcurl, "-protoset", str(DESCRIPTORS), "-proto-out-dir", folder, "describe", _some_symbol(name))
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        return (Path(folder) / name).read_bytes()


def _some_symbol(name: str) -> str:
    (file,) = (each for each in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file if each.name == name)
    return f"{file.package}.{file.message_type[0].name}"
