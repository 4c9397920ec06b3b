"""The contract and everything that it imports, as .proto files."""

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from google.api import field_behavior_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

from supply.installed import ROOT

PROTO = ROOT / "proto"
DESCRIPTORS = ROOT / "generated" / "conversations" / "v1" / "descriptors.binpb"
GOOGLEAPIS = Path(field_behavior_pb2.__file__).parents[2]
BUILT_IN = "google/protobuf/"  # protoc and buf bring these themselves
README = PROTO / "README.md"


def proto_files() -> dict[str, bytes]:
    """Returns the files by their import paths, with a README that says how to generate code of them."""
    files = {"README.md": README.read_bytes(), "LICENSE": (ROOT / "LICENSE").read_bytes()}
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        if not file.name.startswith(BUILT_IN):
            sources = (PROTO / file.name, GOOGLEAPIS / file.name)
            found = next((path for path in sources if path.is_file()), None)
            files[file.name] = found.read_bytes() if found else _printed(file)
    return files


def _printed(file: FileDescriptorProto) -> bytes:
    """A file that is there as a descriptor only, printed by grpcurl: protovalidate for Python ships no .proto."""
    grpcurl = shutil.which("grpcurl")
    if grpcurl is None:
        sys.exit("grpcurl is missing: python -m tests.support.tools installs it")
    symbol = f"{file.package}.{file.message_type[0].name}"  # any of the file
    with TemporaryDirectory() as folder:
        command = (grpcurl, "-protoset", str(DESCRIPTORS), "-proto-out-dir", folder, "describe", symbol)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        return (Path(folder) / file.name).read_bytes()
