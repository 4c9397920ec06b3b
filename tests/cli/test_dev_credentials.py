"""`dev-credentials`: a server and a client that use what it writes and prints, and what it refuses."""

import asyncio
import json
import os
import shlex
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conversations.v1 import conversation_pb2
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from typer.testing import CliRunner

from server.app.service import run_service
from server.cli.client import Target, connection
from server.cli.commands import app
from server.cli.dev_credentials import MAX_PRINCIPALS, CredentialsRefused
from server.settings.service import load
from tests.support.build import create
from tests.support.service import Service


def dev_credentials(folder: Path, *arguments: str) -> dict[str, str]:
    """What the command exports, without the prefix of the settings."""
    done = CliRunner().invoke(app, ["dev-credentials", str(folder), *arguments])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert 0 == done.exit_code, done.output
    lines = [shlex.split(line, comments=True) for line in done.output.splitlines()]
    assert {"export"} == {line[0] for line in lines if line}
    exported = dict(line[1].split("=", 1) for line in lines if line)
    return {name.removeprefix("CONVERSATIONS_").lower(): value for name, value in exported.items()}


@pytest.mark.parametrize(
    "arguments, owner",
    [(("--tenant", "acme"), "alice"), (("--mtls",), "spiffe://dev.example/alice")],
    ids=["jwt", "mtls"],
)
async def test_a_server_and_a_client(service: Service, tmp_path: Path, arguments: tuple[str, ...], owner: str) -> None:
    """With the exports a server starts, and a client is the first principal."""
    exported = dev_credentials(tmp_path / "it's here", "--principal", "alice;teams=red", *arguments)
    client = {name: exported.pop(name) for name in list(exported) if name.startswith("target")}
    values: dict[str, Any] = {
        "database_url": service.url,
        "listen": "127.0.0.1:0",
        "purge_every_minutes": 0,
        **exported,
    }
    async with run_service(load(**values)) as served:
        address = client["target"].replace("50051", served.address.rpartition(":")[2])
        made = await asyncio.to_thread(create_as, client | {"target": address})
    assert owner == made.owner
    teams = {name: list(values.values) for name, values in made.attributes.items()}
    assert ({} if "--mtls" in arguments else {"teams": ["red"]}) == teams


def create_as(client: dict[str, str]) -> conversation_pb2.Conversation:
    """Creates a conversation as a command would that has these variables."""
    given = {name.removeprefix("target_"): value for name, value in client.items()}
    options = {field.name: given[field.name] for field in fields(Target) if field.name in given}
    paths = {name: value if name == "target" else Path(value) for name, value in options.items()}
    with connection(Target(**paths)).open() as channel:  # type: ignore[arg-type]
        found: conversation_pb2.Conversation = ConversationsServiceStub(channel).CreateConversation(
            create(), timeout=10
        )
    return found


def test_the_files(tmp_path: Path) -> None:
    """Nobody else can read them, and the private keys of the CA and of the issuer are in none."""
    before = os.umask(0)
    try:
        dev_credentials(tmp_path / "new", "--principal", "alice", "--principal", "bob", "--host", "db.internal")
    finally:
        os.umask(before)
    folder = tmp_path / "new"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    ours = {f"{who}.{what}" for who in ("alice", "bob") for what in ("key", "pem", "token")}
    assert dict.fromkeys({"ca.pem", "server.pem", "server.key", "jwks.json", *ours}, 0o600) == modes
    assert 0o700 == stat.S_IMODE(folder.stat().st_mode)
    (key,) = json.loads((folder / "jwks.json").read_text())["keys"]
    assert "d" not in key


@pytest.mark.parametrize(
    "principals, complaint",
    [
        (["../alice"], "a name has"),
        (["a" * 65], "a name has"),
        (["server"], "a name has"),
        (["alice;teams"], "name=value"),
        (["alice;Teams=red"], "name=value"),
        (["alice;exp=1"], "exp is a claim"),
        (["alice", "alice"], "different names"),
        ([f"p{number}" for number in range(MAX_PRINCIPALS + 1)], "1 to 100"),
    ],
)
def test_wrong_principals(tmp_path: Path, principals: list[str], complaint: str) -> None:
    """A mistake is named, and nothing is written."""
    with pytest.raises(CredentialsRefused, match=complaint):
        dev_credentials(tmp_path / "new", *(part for each in principals for part in ("--principal", each)))
    assert not (tmp_path / "new").exists()


def test_as_many_principals_as_may_be(tmp_path: Path) -> None:
    """A hundred, with the longest name."""
    names = [f"p{number}".ljust(64, "x") for number in range(MAX_PRINCIPALS)]
    dev_credentials(tmp_path, *(part for each in names for part in ("--principal", each)))
    assert MAX_PRINCIPALS == len(list(tmp_path.glob("*.token")))


def test_a_folder_with_files(tmp_path: Path) -> None:
    """Nothing is overwritten."""
    (tmp_path / "server.key").write_text("precious")
    with pytest.raises(CredentialsRefused, match="there are files"):
        dev_credentials(tmp_path, "--principal", "alice")
    assert ["server.key"] == [path.name for path in tmp_path.iterdir()]


def test_a_wrong_host(tmp_path: Path) -> None:
    """It is named, and nothing is written."""
    with pytest.raises(CredentialsRefused, match="--host"):
        dev_credentials(tmp_path / "new", "--principal", "alice", "--host", "https://x")
    assert not (tmp_path / "new").exists()
