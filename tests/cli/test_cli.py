"""The command line, as a process of its own."""

import asyncio
import json
import re
import signal
import stat
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import typer.main
from typer.testing import CliRunner

from server.cli.commands import app
from server.items import to_json
from server.store.migrate import HEAD
from tests.support.build import append, create, delete, delete_item, get_item, list_items, user_message
from tests.support.commands import (
    ROOT,
    address_in,
    connect,
    environment,
    error_line_of,
    finish,
    output_of,
    run_command,
    server_interpreter,
    server_process,
    start_command,
    start_interpreter,
)
from tests.support.postgres import EMPTY_TEMPLATE, fetch, fresh_database
from tests.support.problems import problem
from tests.support.samples import SAMPLES, as_stored, strictly
from tests.support.service import Service

NOBODY = "127.0.0.1:1"  # nothing listens there


# -- serve


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_starts_and_stops(service: Service, number: signal.Signals) -> None:
    """It says where it is, answers at once, and a signal ends it with 0 and no traceback."""
    began = time.monotonic()
    async with server_interpreter(service.url) as (process, line):
        assert time.monotonic() - began < 10
        address = address_in(line)
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address)
        async with connect(address) as stub:
            assert (await stub.CreateConversation(create())).id
        process.send_signal(number)
        assert (0, "Stopping …\n", "") == await finish(process)


async def test_serve_is_the_default(service: Service) -> None:
    """Without a command it serves what the environment says."""
    process = await start_command(**environment(service.url, listen="127.0.0.1:0"))
    assert process.stdout is not None
    address_in((await process.stdout.readline()).decode())
    process.terminate()
    assert 0 == (await finish(process))[0]


async def test_a_signal_lets_running_calls_end(service: Service) -> None:
    """Calls that run when the signal comes are answered, or refused in a way that clients retry."""
    async with server_process(service.url) as (process, line), connect(address_in(line)) as stub:
        made = await stub.CreateConversation(create())
        calls = [asyncio.ensure_future(_append(stub, made.id)) for _ in range(40)]
        await asyncio.sleep(0.01)
        process.terminate()
        codes = await asyncio.gather(*calls)
        assert 0 == (await finish(process))[0]
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
    told = await error_line_of("serve", "--listen", service.address, url=service.url)
    assert service.address in told


UNREACHABLE = "postgresql://user:hunter2@127.0.0.1:1/db"


async def test_an_unreachable_database_is_told() -> None:
    """A database that does not answer ends a command with one line, without the password."""
    for told in await asyncio.gather(
        *(error_line_of(name, "--database-url", UNREACHABLE) for name in ("migrate", "purge"))
    ):
        assert "hunter2" not in told


async def test_an_unreachable_database_is_waited_for() -> None:
    """`serve` says that it waits, is alive but not ready, refuses calls, and ends when told."""
    async with server_process(UNREACHABLE) as (process, line), connect(address_in(line)) as stub:
        assert process.stdout is not None
        told = (await process.stdout.readline()).decode()
        assert told.startswith("Not ready yet: The database cannot be used now: connection_refused (")
        assert "ECONNREFUSED" in told
        assert (1, "NOT_SERVING\n", "") == await run_command("healthcheck", "--target", address_in(line))
        assert "UNAVAILABLE" == (await problem(stub.CreateConversation(create()))).code
        process.terminate()
        code, output, errors = await finish(process)
        assert (0, "Stopping …\n") == (code, output)
        assert "hunter2" not in errors
        assert 1 == errors.count("waiting for the database")


async def test_a_missing_database_is_told(postgres: str) -> None:
    """A database that is not there ends each command with one line."""
    nowhere = postgres.replace("/postgres?", "/nowhere?") if "?" in postgres else f"{postgres}_nowhere"
    names = ("serve", "migrate", "purge")
    commands = [error_line_of(name, "--database-url", nowhere, listen="127.0.0.1:0") for name in names]
    for told in await asyncio.gather(*commands):
        assert "3D000" in told


async def test_wrong_settings_are_told() -> None:
    """All wrong settings are named, each in a line, and nothing starts."""
    wrong = {"pool_size": "none", "log_level": "loud", "grace_seconds": "-1"}
    code, output, errors = await run_command("serve", "--listen", "nowhere", **wrong)
    assert (1, "") == (code, output)
    first, *lines = errors.splitlines()
    assert "Wrong settings:" == first
    names = ["CONVERSATIONS_LISTEN", *(f"CONVERSATIONS_{name.upper()}" for name in wrong)]
    assert sorted(names) == sorted(match for line in lines for match in re.findall(r"\((CONVERSATIONS_\w+)\)", line))


async def test_a_public_address_is_refused() -> None:
    """Without an identity source nobody else is served, and the line says how to allow it."""
    code, _, errors = await run_command("serve", "--listen", "0.0.0.0:0")
    assert 1 == code
    assert "CONVERSATIONS_LISTEN" in errors
    assert "allow_anonymous" in errors.lower()


async def test_a_unix_socket_is_served(service: Service, short_folder: Path) -> None:
    """A socket is open to its owner and group, calls go through it, and the health check too."""
    path = short_folder / "socket"
    async with server_process(service.url, f"unix:{path}") as (process, line):
        assert f"unix:{path}" == address_in(line)
        assert stat.S_ISSOCK(path.stat().st_mode)
        assert 0o660 == stat.S_IMODE(path.stat().st_mode)
        async with connect(f"unix:{path}") as stub:
            assert (await stub.CreateConversation(create())).id
        assert "SERVING\n" == await output_of("healthcheck", "--target", f"unix:{path}")
        process.terminate()
        assert 0 == (await finish(process))[0]


async def test_a_left_socket_is_used_again(service: Service, short_folder: Path) -> None:
    """The socket of a process that was killed does not keep the next one from starting."""
    path = short_folder / "socket"
    async with server_interpreter(service.url, f"unix:{path}") as (process, _):
        process.kill()
        await process.wait()
    assert path.exists()
    async with server_process(service.url, f"unix:{path}") as (_, line), connect(address_in(line)) as stub:
        assert (await stub.CreateConversation(create())).id


async def test_a_taken_socket_is_told(service: Service, short_folder: Path) -> None:
    """A socket that another process serves is not taken from it."""
    path = short_folder / "socket"
    async with server_process(service.url, f"unix:{path}"):
        told = await error_line_of("serve", "--listen", f"unix:{path}", url=service.url)
        assert str(path) in told
        assert "SERVING\n" == await output_of("healthcheck", "--target", f"unix:{path}")


# -- the other commands


async def test_healthcheck_of_nobody() -> None:
    """Where nobody serves, the health check fails with a line."""
    assert "UNAVAILABLE" in await error_line_of("healthcheck", "--target", NOBODY)


async def test_changes(own_service: Service) -> None:
    """The log of changes is turned on and off beside a running service, and its state is shown."""
    url = own_service.url
    assert "changes are kept from now on, each for 48 hours." in await output_of(
        "changes", "on", "--keep-hours", "48", url=url
    )
    await own_service.stub.CreateConversation(create())
    status = await output_of("changes", "status", url=url)
    assert "changes are kept, since 20" in status
    assert "Changes now: 1, each kept for 48 hours." in status
    assert "changes are no longer kept." in await output_of("changes", "off", url=url)


async def test_migrate(postgres: str) -> None:
    """`migrate` brings an empty database up to date once, and `--check` says whether it must."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url:
        code, output, errors = await run_command("migrate", "--check", url=url)
        assert (1, "") == (code, errors)
        assert f"schema at nothing, newest {HEAD}\n" in output
        assert "relation" not in output
        assert [] == await fetch(url, "SELECT FROM pg_class WHERE relname = 'conversations'")
        assert f"brought to {HEAD}\n" in await output_of("migrate", url=url)
        again, check = await asyncio.gather(output_of("migrate", url=url), output_of("migrate", "--check", url=url))
        assert f"was at {HEAD}\n" in again
        assert f"schema at {HEAD}, newest {HEAD}\n" in check


async def test_serve_without_migrating(postgres: str) -> None:
    """Told not to migrate, it says which command to run, and serves once somebody has."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as url, server_process(url, migrate="false") as (process, line):
        assert process.stdout is not None
        assert "python -m server migrate" in (await process.stdout.readline()).decode()
        await output_of("migrate", url=url)
        async with connect(address_in(line)) as stub, asyncio.timeout(10):
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
    told = await output_of("purge", url=own_service.url)
    assert told.endswith(": 0 conversations, 0 items, 0 request ids, 0 changes\n")
    told = await output_of("purge", "--after-hours", "0", url=own_service.url)
    assert told.endswith(": 1 conversations, 3 items, 0 request ids, 0 changes\n")


def documents() -> list[dict[str, Any]]:
    """The samples, but for those whose id repeats."""
    seen: dict[str, dict[str, Any]] = {}
    for name, item in SAMPLES.items():
        seen.setdefault(item.get("id") or name, item)
    return list(seen.values())


async def test_import_and_export(service: Service, short_folder: Path) -> None:
    """What is imported is exported: the same items in the same order, and the same once more."""
    given = documents()
    file = short_folder / "items.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in given) + "\n", encoding="utf-8")
    target = ("--target", service.address)
    first = (await output_of("import-jsonl", str(file), *target)).strip()
    lines = await output_of("export-jsonl", first, *target)
    exported = [json.loads(line) for line in lines.splitlines()]
    assert len(given) == len(exported)
    for sent, got in zip(given, exported, strict=True):
        whole = as_stored(sent)
        added = {key: got[key] for key in ("id", "status") if whole.get(key) is None and key in got}
        assert strictly({**whole, **added}) == strictly(got)

    second = (await output_of("import-jsonl", "-", *target, given=lines)).strip()
    assert first != second
    assert lines == await output_of("export-jsonl", second, *target)


async def test_import_into_a_conversation(service: Service, short_folder: Path) -> None:
    """Items can go behind those of a conversation that is there."""
    made = await service.stub.CreateConversation(create(user_message("first")))
    file = short_folder / "items.jsonl"
    file.write_text('{"role": "user", "content": "☃\\u2028second"}\n', encoding="utf-8")
    arguments = (str(file), "--conversation", made.id, "--target", service.address)
    assert f"{made.id}\n" == await output_of("import-jsonl", *arguments)
    listed = await service.stub.ListItems(list_items(made.id))
    assert [2, 1] == [item.sequence for item in listed.items]
    assert "☃\u2028second" == listed.items[0].message.content[0].input_text.text


async def test_an_export_with_line_separators_can_be_imported(service: Service) -> None:
    """Characters that some take for the end of a line do not break an item in two."""
    text = "a\u2028b\u2029c\u0085d\x0be"
    made = await service.stub.CreateConversation(create(user_message(text)))
    lines = await output_of("export-jsonl", made.id, "--target", service.address)
    again = (await output_of("import-jsonl", "-", "--target", service.address, given=lines)).strip()
    listed = await service.stub.ListItems(list_items(again))
    assert [text] == [item.message.content[0].input_text.text for item in listed.items]


async def test_a_wrong_line_is_named(service: Service, short_folder: Path) -> None:
    """A line that is no item is named by its number, and nothing is sent."""
    made = await service.stub.CreateConversation(create())
    file = short_folder / "items.jsonl"
    file.write_text('{"role": "user", "content": "a"}\n{"role": \n', encoding="utf-8")
    told = await error_line_of("import-jsonl", str(file), "--conversation", made.id, "--target", service.address)
    assert "line 2" in told
    assert [] == list((await service.stub.ListItems(list_items(made.id))).items)


async def test_a_file_that_cannot_be_read_is_told(short_folder: Path) -> None:
    """A file that is missing, a folder or not UTF-8 is one line that names it."""
    (short_folder / "latin").write_bytes(b'{"role": "user", "content": "\xe9"}\n')
    commands = [
        error_line_of("import-jsonl", str(short_folder / name), "--target", NOBODY) for name in ("no", ".", "latin")
    ]
    missing, directory, latin = await asyncio.gather(*commands)
    assert str(short_folder / "no") in missing
    assert str(short_folder) in directory
    assert "UTF-8" in latin


async def test_item_show(service: Service) -> None:
    """One item is printed for people, and as OpenAI JSON for programs; a missing one is a line."""
    made = await service.stub.CreateConversation(create(user_message("☃", id="msg_a")))
    item = await service.stub.GetItem(get_item(made.id, "msg_a"))
    target = ("--target", service.address)
    told, shown, no_item, no_conversation = await asyncio.gather(
        output_of("item", "show", made.id, "msg_a", *target, "--json"),
        output_of("item", "show", made.id, "msg_a", *target),
        error_line_of("item", "show", made.id, "msg_b", *target),
        error_line_of("export-jsonl", "conv_nobody", *target),
    )
    assert to_json(item) == json.loads(told)
    assert told.isascii()
    assert re.search(r"^type +message\nrole +user\n", shown, re.MULTILINE)
    assert shown.endswith("\ncontent:\n  [input_text]\n  ☃\n")
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
    listed = set(re.findall(r"^python -m server ([a-z]\S*(?: [a-z]\S*)*)(?: |$)", section, re.MULTILINE))
    assert listed <= {" ".join(command) for command in commands()}
    assert listed


async def test_help_of_the_process() -> None:
    """`python -m server --help` names the commands and starts nothing."""
    code, told, errors = await finish(await start_interpreter("--help", **environment()))
    assert (0, "") == (code, errors)
    assert [] == [name for name, *_ in commands()[1:] if name not in told]


async def test_an_unknown_command_is_told() -> None:
    """A wrong command ends with usage, not with a server."""
    code, output, errors = await run_command("swerve")
    assert (2, "") == (code, output)
    assert "swerve" in errors


def test_make_run_passes_options() -> None:
    """What the README gives to `make run` is taken by the command that it runs."""
    (recipe,) = re.findall(r"^run:.*\n\t@exec python -m server (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    (options,) = re.findall(r'`make run ARGS="(.*)"`', (ROOT / "README.md").read_text(encoding="utf-8"))
    group: Any = typer.main.get_command(app)
    name, *arguments = recipe.replace("$(ARGS)", options).split()
    assert ["127.0.0.1:0"] == group.commands[name].make_context(name, arguments).params["listen"]
