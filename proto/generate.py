"""Generates ``generated/`` from ``proto/``, and the descriptor images that buf reads.

``generated/`` contains the Python modules, and the descriptors with their comments, which reflection serves.

It needs no network: Google's files come from googleapis-common-protos, protoc
from grpcio-tools, and the rules of ``buf/validate`` from the descriptor inside
the protovalidate package.
"""

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc_tools
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from protovalidate._gen.buf.validate import validate_pb

PROTO = Path(__file__).parent
GENERATED = PROTO.parent / "generated"
VALIDATE = "buf/validate/validate.proto"
DETAILS = "google/rpc/error_details.proto"  # error details, which no file of the contract imports
DESCRIPTORS = "conversations/v1/descriptors.binpb"
OPENAPI = "conversations/v1/openapi.json"
INCLUDES = (
    Path(field_behavior_pb2.__file__).parents[2],  # google/api, google/rpc
    Path(grpc_tools.__file__).parent / "_proto",  # google/protobuf
)


def modules(out: Path) -> None:
    """Writes the Python modules and their stubs to ``out``, which is emptied first."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    own = _names(PROTO)
    services = [name for name in own if name.endswith("_service.proto")]
    _protoc(PROTO, [f"--python_out={out}", f"--mypy_out=quiet:{out}"], [*own, VALIDATE])
    _protoc(PROTO, [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"], services)
    descriptors(out / DESCRIPTORS)
    for package in {stub.parent for stub in out.rglob("*.pyi")}:
        (package / "py.typed").touch()  # type checkers read the stubs of an installed package that has this file
    # In a process of its own: it imports what has been generated.
    subprocess.run([sys.executable, str(PROTO / "openapi.py"), str(out / OPENAPI)], check=True)  # noqa: S603


def descriptors(out: Path) -> None:
    """Writes the descriptors of everything a client needs, with the comments of this contract.

    protoc leaves comments out of the Python modules. It leaves JSON names out too, and so does
    this function: without them grpcurl prints the field names of the contract.
    """
    own = _names(PROTO)
    _protoc(PROTO, ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}"], [*own, DETAILS])
    files = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for file in files.file:
        kept = [place for place in file.source_code_info.location if file.name in own and _is_comment(place)]
        file.ClearField("source_code_info")
        file.source_code_info.location.extend(kept)
        for field in _fields(file):
            field.ClearField("json_name")
    out.write_bytes(files.SerializeToString(deterministic=True))


def _is_comment(place: descriptor_pb2.SourceCodeInfo.Location) -> bool:
    return bool(place.leading_comments or place.trailing_comments or place.leading_detached_comments)


def _fields(file: descriptor_pb2.FileDescriptorProto) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    yield from file.extension
    messages = list(file.message_type)
    for message in messages:  # it grows meanwhile
        yield from message.field
        yield from message.extension
        messages.extend(message.nested_type)


def image(out: Path, proto: Path = PROTO) -> None:
    """Writes a descriptor image of ``proto`` with all it imports."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _protoc(proto, ["--include_imports", "--include_source_info", f"--descriptor_set_out={out}"], _names(proto))


def image_at(revision: str, out: Path) -> None:
    """Writes the image of ``proto/`` at a git revision."""
    command = ["git", "archive", revision, "proto"]
    archive = subprocess.run(command, cwd=PROTO.parent, check=True, capture_output=True).stdout  # noqa: S603
    with TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        image(out, Path(folder) / "proto")


def _names(proto: Path) -> list[str]:
    return sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))


def _validate_rules() -> bytes:
    """The rules of protovalidate as a FileDescriptorSet; its package ships no .proto."""
    file = descriptor_pb2.FileDescriptorProto.FromString(validate_pb.desc().proto.to_binary())
    file.options.java_package = "build.buf.validate"  # as published for Java; what made the Python package renames it
    return descriptor_pb2.FileDescriptorSet(file=[file]).SerializeToString()


def _protoc(proto: Path, flags: list[str], names: list[str]) -> None:
    with TemporaryDirectory() as folder:
        rules = Path(folder) / "validate.binpb"
        rules.write_bytes(_validate_rules())
        includes = [f"-I{path}" for path in (proto, *INCLUDES)]
        if protoc.main(["protoc", *includes, f"--descriptor_set_in={rules}", *flags, *names]):
            sys.exit("protoc failed")


def main() -> None:
    """Runs the command line; without arguments it renews ``generated/``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, default=GENERATED, help="folder of the modules")
    parser.add_argument("--image", type=Path, metavar="FILE", help="write a descriptor image instead")
    parser.add_argument("--image-at", nargs=2, metavar=("REVISION", "FILE"), help="the same, of a git revision")
    flags = parser.parse_args()
    if flags.image:
        image(flags.image)
    elif flags.image_at:
        image_at(flags.image_at[0], Path(flags.image_at[1]))
    else:
        modules(flags.out)


if __name__ == "__main__":
    main()
