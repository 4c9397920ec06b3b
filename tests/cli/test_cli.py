"""The command line, as a process of its own."""

import asyncio
import json
import os
import re
import signal
import stat
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc.aio
import pytest
import typer.main
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from typer.testing import CliRunner

from server.cli.commands import app
from server.items import to_json
from server.store.migrate import HEAD
from tests.conftest import Service, fresh_database, problem
from tests.items.test_items import SAMPLES, exact, stored
from tests.store.test_store import EMPTY
from tests.store.test_store import run as sql
from tests.support.build import append, create, delete, delete_item, get_item, list_items, user_message

ROOT = Path(__file__).parents[2]
START = re.compile(r"Conversation Service on (\S+), PostgreSQL at (\S+)\n")
NOBODY = "127.0.0.1:1"  # nothing listens there


def environment(url: str | None = None, **settings: str) -> dict[str, str]:
    """This process's, with these settings and no other."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONVERSATIONS_")}
    given = {"CONVERSATIONS_DATABASE_URL": url} if url else {}
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "generated")))
    return {**kept, "PYTHONPATH": paths, **given, **{f"CONVERSATIONS_{key.upper()}": v for key, v in settings.items()}}


async def started(*arguments: str, **variables: str) -> Process:
    """`python -m server` with these arguments and this environment."""
    command = (sys.executable, "-m", "server", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=variables, cwd=ROOT)


async def ended(process: Process, given: str = "") -> tuple[int, str, str]:
    """Exit code, output and errors."""
    async with asyncio.timeout(20):
        output, errors = await process.communicate(given.encode())
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def run(*arguments: str, given: str = "", url: str | None = None, **settings: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    return await ended(await started(*arguments, **environment(url, **settings)), given)


async def printed(*arguments: str, **more: Any) -> str:
    """The output of a command that succeeds without a word on standard error."""
    code, output, errors = await run(*arguments, **more)
    assert (0, "") == (code, errors)
    return output


async def complaint(*arguments: str, **more: Any) -> str:
    """The line that a command fails with: one, on standard error, with exit code 1 and no traceback."""
    code, output, errors = await run(*arguments, **more)
    assert (1, "") == (code, output), errors
    assert re.fullmatch(r"Error: .+\n", errors), errors
    return errors


@asynccontextmanager
async def run_service(url: str, listen: str = "127.0.0.1:0", **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """A process that serves, and its start line; it is killed if it still runs at the end."""
    process = await started("serve", "--listen", listen, **environment(url, grace_seconds="1", **settings))
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.timeout(15):
            line = (await process.stdout.readline()).decode()
        assert line, (await process.stderr.read()).decode()
        yield process, line
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def address_of(line: str) -> str:
    """The address in a start line."""
    match = START.fullmatch(line)
    assert match, line
    return match[1]


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Any]:
    """A client of another process."""
    options = [("grpc.default_authority", "localhost")] if address.startswith("unix:") else []
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield ConversationsServiceStub(channel)


# -- serve


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_starts_and_stops(service: Service, number: signal.Signals) -> None:
    """It says where it is, answers at once, and a signal ends it with 0 and no traceback."""
    began = time.monotonic()
    async with run_service(service.url) as (process, line):
        assert time.monotonic() - began < 10
        address = address_of(line)
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address)
        async with client(address) as stub:
            assert (await stub.CreateConversation(create())).id
        process.send_signal(number)
        assert (0, "Stopping …\n", "") == await ended(process)


async def test_serve_is_the_default(service: Service) -> None:
    """Without a command it serves what the environment says."""
    process = await started(**environment(service.url, listen="127.0.0.1:0"))
    assert process.stdout is not None
    address_of((await process.stdout.readline()).decode())
    process.terminate()
    assert 0 == (await ended(process))[0]


async def test_a_signal_lets_running_calls_end(service: Service) -> None:
    """Calls that run when the signal comes are answered, or refused in a way that clients retry."""
    async with run_service(service.url) as (process, line), client(address_of(line)) as stub:
        made = await stub.CreateConversation(create())
        calls = [asyncio.ensure_future(_append(stub, made.id)) for _ in range(40)]
        await asyncio.sleep(0.01)
        process.terminate()
        codes = await asyncio.gather(*calls)
        assert 0 == (await ended(process))[0]
        assert {"OK", "UNAVAILABLE"} >= set(codes)
    listed = await service.stub.ListItems(list_items(made.id, page_size=100))
    assert codes.count("OK") <= len(listed.items)


async def _append(stub: Any, conversation_id: str) -> str:
    try:
        await stub.CreateItems(append(conversation_id, user_message("hi")))
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_a_taken_port_is_told(service: Service) -> None:
    """An address that another process serves ends the start with one line that names it."""
    told = await complaint("serve", "--listen", service.address, url=service.url)
    assert service.address in told


UNREACHABLE = "postgresql://user:hunter2@127.0.0.1:1/db"


async def test_an_unreachable_database_is_told() -> None:
    """A database that does not answer ends a command with one line, without the password."""
    for told in await asyncio.gather(
        *(complaint(name, "--database-url", UNREACHABLE) for name in ("migrate", "purge"))
    ):
        assert "hunter2" not in told


async def test_an_unreachable_database_is_waited_for() -> None:
    """`serve` says that it waits, is alive but not ready, refuses calls, and ends when told."""
    async with run_service(UNREACHABLE) as (process, line), client(address_of(line)) as stub:
        assert process.stdout is not None
        assert "Not ready yet: The store is not available; try again.\n" == (await process.stdout.readline()).decode()
        assert (1, "NOT_SERVING\n", "") == await run("healthcheck", "--target", address_of(line))
        assert "UNAVAILABLE" == (await problem(stub.CreateConversation(create()))).code
        process.terminate()
        code, output, errors = await ended(process)
        assert (0, "Stopping …\n") == (code, output)
        assert "hunter2" not in errors
        assert 1 == errors.count("waiting for the database")


async def test_a_missing_database_is_told(postgres: str) -> None:
    """A database that is not there ends each command with one line."""
    nowhere = postgres.replace("/postgres?", "/nowhere?") if "?" in postgres else f"{postgres}_nowhere"
    commands = [complaint(command, "--database-url", nowhere) for command in ("serve", "migrate", "purge")]
    for told in await asyncio.gather(*commands):
        assert "3D000" in told


async def test_wrong_settings_are_told() -> None:
    """All wrong settings are named, each in a line, and nothing starts."""
    wrong = {"pool_size": "none", "log_level": "loud", "grace_seconds": "-1"}
    code, output, errors = await run("serve", "--listen", "nowhere", **wrong)
    assert (1, "") == (code, output)
    first, *lines = errors.splitlines()
    assert "Wrong settings:" == first
    names = ["CONVERSATIONS_LISTEN", *(f"CONVERSATIONS_{name.upper()}" for name in wrong)]
    assert sorted(names) == sorted(match for line in lines for match in re.findall(r"\((CONVERSATIONS_\w+)\)", line))


async def test_a_public_address_is_refused() -> None:
    """Without an identity source nobody else is served, and the line says how to allow it."""
    code, _, errors = await run("serve", "--listen", "0.0.0.0:0")
    assert 1 == code
    assert "CONVERSATIONS_LISTEN" in errors
    assert "allow_anonymous" in errors.lower()


@pytest.fixture
def folder() -> Any:
    """A short path: that of a socket has about a hundred characters at most."""
    with TemporaryDirectory() as name:
        yield Path(name)


async def test_a_unix_socket_is_served(service: Service, folder: Path) -> None:
    """A socket is open to its owner and group, calls go through it, and the health check too."""
    path = folder / "socket"
    async with run_service(service.url, f"unix:{path}") as (process, line):
        assert f"unix:{path}" == address_of(line)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert 0o660 == stat.S_IMODE(path.stat().st_mode)
        async with client(f"unix:{path}") as stub:
            assert (await stub.CreateConversation(create())).id
        assert "SERVING\n" == await printed("healthcheck", "--target", f"unix:{path}")
        process.terminate()
        assert 0 == (await ended(process))[0]


async def test_a_left_socket_is_used_again(service: Service, folder: Path) -> None:
    """The socket of a process that was killed does not keep the next one from starting."""
    path = folder / "socket"
    async with run_service(service.url, f"unix:{path}") as (process, _):
        process.kill()
        await process.wait()
    assert path.exists()
    async with run_service(service.url, f"unix:{path}") as (_, line), client(address_of(line)) as stub:
        assert (await stub.CreateConversation(create())).id


async def test_a_taken_socket_is_told(service: Service, folder: Path) -> None:
    """A socket that another process serves is not taken from it."""
    path = folder / "socket"
    async with run_service(service.url, f"unix:{path}"):
        told = await complaint("serve", "--listen", f"unix:{path}", url=service.url)
        assert str(path) in told
        assert "SERVING\n" == await printed("healthcheck", "--target", f"unix:{path}")


# -- the other commands


async def test_healthcheck_of_nobody() -> None:
    """Where nobody serves, the health check fails with a line."""
    assert "UNAVAILABLE" in await complaint("healthcheck", "--target", NOBODY)


async def test_migrate(postgres: str) -> None:
    """`migrate` brings an empty database up to date once, and `--check` says whether it must."""
    async with fresh_database(postgres, EMPTY) as url:
        code, output, errors = await run("migrate", "--check", url=url)
        assert (1, "") == (code, errors)
        assert f"schema at nothing, newest {HEAD}\n" in output
        assert "relation" not in output
        assert [] == await sql(url, "SELECT FROM pg_class WHERE relname = 'conversations'")
        assert f"brought to {HEAD}\n" in await printed("migrate", url=url)
        again, check = await asyncio.gather(printed("migrate", url=url), printed("migrate", "--check", url=url))
        assert f"was at {HEAD}\n" in again
        assert f"schema at {HEAD}, newest {HEAD}\n" in check


async def test_serve_without_migrating(postgres: str) -> None:
    """Told not to migrate, it says which command to run, and serves once somebody has."""
    async with fresh_database(postgres, EMPTY) as url, run_service(url, migrate="false") as (process, line):
        assert process.stdout is not None
        assert "python -m server migrate" in (await process.stdout.readline()).decode()
        await printed("migrate", url=url)
        async with client(address_of(line)) as stub, asyncio.timeout(10):
            while "OK" != (found := await _code(stub)):
                assert "UNAVAILABLE" == found
                await asyncio.sleep(0.1)


async def _code(stub: Any) -> str:
    """How a call ends."""
    try:
        await stub.CreateConversation(create())
    except grpc.aio.AioRpcError as error:
        return error.code().name
    return "OK"


async def test_purge(own_service: Service) -> None:
    """`purge` removes what is older than it is told, and prints how much."""
    stub = own_service.stub
    made = await stub.CreateConversation(create(user_message("a"), user_message("b")))
    await stub.CreateConversation(create(user_message("c", id="msg_c")))
    await stub.DeleteConversation(delete(made.id))
    other = await stub.CreateConversation(create(user_message("d", id="msg_d")))
    await stub.DeleteItem(delete_item(other.id, "msg_d"))
    told = await printed("purge", url=own_service.url)
    assert told.endswith(": 0 conversations, 0 items, 0 request ids\n")
    told = await printed("purge", "--after-hours", "0", url=own_service.url)
    assert told.endswith(": 1 conversations, 3 items, 0 request ids\n")


def documents() -> list[dict[str, Any]]:
    """The samples, but for those whose id repeats."""
    seen: dict[str, dict[str, Any]] = {}
    for name, item in SAMPLES.items():
        seen.setdefault(item.get("id") or name, item)
    return list(seen.values())


async def test_import_and_export(service: Service, folder: Path) -> None:
    """What is imported is exported: the same items in the same order, and the same once more."""
    given = documents()
    file = folder / "items.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in given) + "\n", encoding="utf-8")
    target = ("--target", service.address)
    first = (await printed("import-jsonl", str(file), *target)).strip()
    lines = await printed("export-jsonl", first, *target)
    exported = [json.loads(line) for line in lines.splitlines()]
    assert len(given) == len(exported)
    for sent, got in zip(given, exported, strict=True):
        whole = stored(sent)
        added = {key: got[key] for key in ("id", "status") if whole.get(key) is None and key in got}
        assert exact({**whole, **added}) == exact(got)

    second = (await printed("import-jsonl", "-", *target, given=lines)).strip()
    assert first != second
    assert lines == await printed("export-jsonl", second, *target)


async def test_import_into_a_conversation(service: Service, folder: Path) -> None:
    """Items can go behind those of a conversation that is there."""
    made = await service.stub.CreateConversation(create(user_message("first")))
    file = folder / "items.jsonl"
    file.write_text('{"role": "user", "content": "☃\\u2028second"}\n', encoding="utf-8")
    arguments = (str(file), "--conversation", made.id, "--target", service.address)
    assert f"{made.id}\n" == await printed("import-jsonl", *arguments)
    listed = await service.stub.ListItems(list_items(made.id))
    assert [2, 1] == [item.sequence for item in listed.items]
    assert "☃\u2028second" == listed.items[0].message.content[0].input_text.text


async def test_an_export_with_line_separators_can_be_imported(service: Service) -> None:
    """Characters that some take for the end of a line do not break an item in two."""
    text = "a\u2028b\u2029c\u0085d\x0be"
    made = await service.stub.CreateConversation(create(user_message(text)))
    lines = await printed("export-jsonl", made.id, "--target", service.address)
    again = (await printed("import-jsonl", "-", "--target", service.address, given=lines)).strip()
    listed = await service.stub.ListItems(list_items(again))
    assert [text] == [item.message.content[0].input_text.text for item in listed.items]


async def test_a_wrong_line_is_named(service: Service, folder: Path) -> None:
    """A line that is no item is named by its number, and nothing is sent."""
    made = await service.stub.CreateConversation(create())
    file = folder / "items.jsonl"
    file.write_text('{"role": "user", "content": "a"}\n{"role": \n', encoding="utf-8")
    told = await complaint("import-jsonl", str(file), "--conversation", made.id, "--target", service.address)
    assert "line 2" in told
    assert [] == list((await service.stub.ListItems(list_items(made.id))).items)


async def test_a_file_that_cannot_be_read_is_told(folder: Path) -> None:
    """A file that is missing, a folder or not UTF-8 is one line that names it."""
    (folder / "latin").write_bytes(b'{"role": "user", "content": "\xe9"}\n')
    commands = [complaint("import-jsonl", str(folder / name), "--target", NOBODY) for name in ("no", ".", "latin")]
    missing, directory, latin = await asyncio.gather(*commands)
    assert str(folder / "no") in missing
    assert str(folder) in directory
    assert "UTF-8" in latin


async def test_item_show(service: Service) -> None:
    """One item is printed as OpenAI JSON for people, and a missing one is a line."""
    made = await service.stub.CreateConversation(create(user_message("☃", id="msg_a")))
    item = await service.stub.GetItem(get_item(made.id, "msg_a"))
    target = ("--target", service.address)
    told, no_item, no_conversation = await asyncio.gather(
        printed("item", "show", made.id, "msg_a", *target),
        complaint("item", "show", made.id, "msg_b", *target),
        complaint("export-jsonl", "conv_nobody", *target),
    )
    assert to_json(item) == json.loads(told)
    assert "☃" in told
    assert "Error: NOT_FOUND: Item with id 'msg_b' not found in conversation.\n" == no_item
    assert "Error: NOT_FOUND: Conversation with id 'conv_nobody' not found.\n" == no_conversation


def commands() -> list[tuple[str, ...]]:
    """Every command, and what leads there."""
    found: list[tuple[str, ...]] = [()]
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        found.append((name,))
        found += [(name, inner) for inner in getattr(command, "commands", {})]
    return found


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]) -> None:
    """`--help` of each command says in a sentence what it does."""
    result = CliRunner().invoke(app, [*command, "--help"])
    assert 0 == result.exit_code
    assert re.match(r"\s*Usage: .+\n\s*\n *[A-Z][a-z]+ ", result.output), result.output


def test_there_are_commands() -> None:
    """The commands of the README are there."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Commands\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^python -m server ([a-z -]+[a-z])(?: |$)", section, re.MULTILINE))
    assert listed <= {" ".join(command) for command in commands()}
    assert listed


async def test_help_of_the_process() -> None:
    """`python -m server --help` names the commands and starts nothing."""
    told = await printed("--help")
    assert [] == [name for name, *_ in commands()[1:] if name not in told]


async def test_an_unknown_command_is_told() -> None:
    """A wrong command ends with usage, not with a server."""
    code, output, errors = await run("swerve")
    assert (2, "") == (code, output)
    assert "swerve" in errors
