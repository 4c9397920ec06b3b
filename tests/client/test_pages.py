"""What docs/python-client.md and the README of the client print works when pasted."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from conversations.v1.conversations_service_pb2 import CreateConversationRequest
from conversations.v1.transfer_service_pb2 import Record
from conversations_client import Client, connect
from conversations_client.ephemeral import COMMAND_VARIABLE

from tests.support.build import append, create, delete, user_message
from tests.support.certificates import CA, TlsFiles
from tests.support.commands import ROOT, environment
from tests.support.jwt import AUDIENCE, ISSUER, ISSUER_KEY, jwk_set, token
from tests.support.pages import code_blocks, run_block
from tests.support.postgres import fresh_database
from tests.support.service import Service, running_service

PAGE = ROOT / "docs" / "python-client.md"
PRINTED_ADDRESS, PRINTED_HOST = "127.0.0.1:50051", "localhost:50051"


def blocks(heading: str) -> list[str]:
    """The blocks in Python below a heading of the page."""
    return code_blocks(PAGE, "python")[heading]


async def run(heading: str, address: str, **names: Any) -> dict[str, Any]:
    """Runs the only block below a heading."""
    (block,) = blocks(heading)
    return await run_block(block.replace(PRINTED_ADDRESS, address), {"connect": connect, **names})


def test_every_section_is_tried() -> None:
    """A new section with a program needs a test here."""
    tried = {"Connecting", "TLS and tokens", "Errors", "Pages", "Watches", "Exports and imports"}
    tried |= {"Tests with a service of their own"}
    assert tried == set(code_blocks(PAGE, "python"))


async def test_connecting(service: Service) -> None:
    """The printed call is answered."""
    assert (await run("Connecting", service.address))["conversation"].id


async def test_tls_and_tokens(postgres: str, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CA is read from the file that is named, and the token says who calls."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca.pem").write_bytes(CA.pem)
    (tmp_path / "jwks.json").write_bytes(jwk_set(ISSUER_KEY))
    (tmp_path / "tls").mkdir()
    files = TlsFiles(tmp_path / "tls").put(*CA.issue("localhost")).settings
    identity = {"identity": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, "jwt_jwks": "jwks.json"}

    async def fetch_token() -> str:
        return token()

    def connect_here(target: str, **options: Any) -> Client:
        assert target == PRINTED_HOST
        return connect(served.address, **options, options=[("grpc.ssl_target_name_override", "localhost")])

    async with fresh_database(postgres, template) as url, running_service(url, **identity, **files) as served:
        request = {"CreateConversationRequest": CreateConversationRequest}
        names = await run("TLS and tokens", "", **request, connect=connect_here, fetch_token=fetch_token)
    assert "alice" == names["conversation"].owner


async def test_errors(service: Service) -> None:
    """The error that is expected is told by its reason."""
    async with connect(service.address) as client:
        names = await run("Errors", "", client=client)
    assert "CONVERSATION_NOT_FOUND" == names["details"].reason


async def test_pages(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """Each item is printed."""
    async with connect(service.address) as client:
        conversation = await client.conversations.CreateConversation(create(user_message("a"), user_message("b")))
        await run("Pages", "", client=client, conversation=conversation)
    assert ["1", "2"] == [line.split()[0] for line in capsys.readouterr().out.splitlines() if "msg_" in line][-2:]


async def test_watches(service: Service) -> None:
    """What happens is stored until the conversation is deleted, and a token that is no good resets."""
    told: list[str] = []
    async with connect(service.address) as client:
        conversation = await client.conversations.CreateConversation(create(user_message("one")))

        async def store(changes: Any, _token: str) -> None:
            kinds = [change.WhichOneof("change") for change in changes]
            told.extend(kinds)
            if "item" in kinds:
                await client.conversations.DeleteConversation(delete(conversation.id))

        async def forget() -> None:
            told.append("reset")

        async with asyncio.timeout(10):
            names = {"client": client, "conversation": conversation, "store": store, "forget": forget}
            await run("Watches", "", **names, stored="no token")
    assert ["reset", "conversation", "item", "conversation_deleted"] == told


async def test_exports_and_imports(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    """All records are kept, and a conversation that has changed since is refused."""
    exporting, importing = blocks("Exports and imports")
    kept: list[Record] = []

    async def keep(record: Record) -> None:
        kept.append(record)

    async def records(answered: Collection[str]) -> AsyncIterator[Record]:
        for record in kept:
            if record.conversation.id not in answered:
                yield record

    async with connect(service.address) as client:
        metadata = {"topic": str(uuid4())}
        conversation = await client.conversations.CreateConversation(create(user_message("one"), metadata=metadata))
        exporting = exporting.replace('owner = "alice"', f'metadata.topic = "{metadata["topic"]}"')
        await run_block(exporting, {"client": client, "stored": "", "keep": keep})
        await client.conversations.CreateItems(append(conversation.id, user_message("two")))
        names = {"client": client, "records": records}
        await run_block(importing, names)
    assert ["conversation", "items", "end"] == [record.WhichOneof("record") for record in kept]
    assert f"{conversation.id} CONVERSATION_EXISTS" in capsys.readouterr().out


@pytest.mark.slow
def test_a_service_for_tests(tmp_path: Path) -> None:
    """Pytest runs the printed test with the printed conftest.py."""
    conftest, test = blocks("Tests with a service of their own")
    (tmp_path / "conftest.py").write_text(conftest, encoding="utf-8")
    (tmp_path / "test_printed.py").write_text(test, encoding="utf-8")
    variables = {**environment(), COMMAND_VARIABLE: f"{sys.executable} -m server"}
    command = (sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(tmp_path), str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


async def test_the_readme_of_the_client(service: Service) -> None:
    """The whole program prints a conversation."""
    ((block,),) = code_blocks(ROOT / "client" / "README.md", "python").values()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", block.replace(PRINTED_ADDRESS, service.address)),
        stdout=asyncio.subprocess.PIPE,
        env=environment(),
    )
    output, _ = await process.communicate()
    assert 0 == process.returncode
    assert b'id: "conv_' in output
