"""Progress bars: on a terminal, and nowhere else."""

import asyncio
import os
import pty
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from server.cli.progress import progress_bar
from server.store.migration_progress import IndexStep, follow_migration, read_step
from server.store.purge import purge
from server.store.removal_progress import on_removed
from tests.support.build import append, create, delete, user_message
from tests.support.commands import ROOT, environment
from tests.support.postgres import fresh_database
from tests.support.service import Service


async def on_a_terminal(*arguments: str, url: str | None = None) -> tuple[int, str, str]:
    """Exit code, output, and what a terminal on standard error receives from `python` with these arguments."""
    ours, theirs = pty.openpty()
    variables = environment(url) | {"TERM": "xterm", "COLUMNS": "120"}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments), stdout=subprocess.PIPE, stderr=theirs, env=variables, cwd=ROOT
    )
    os.close(theirs)
    seen = asyncio.create_task(asyncio.to_thread(_read_to_end, ours))
    async with asyncio.timeout(60):
        output, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, output.decode(), (await seen).decode()


def _read_to_end(terminal: int) -> bytes:
    found = b""
    try:
        while chunk := os.read(terminal, 4096):
            found += chunk
    except OSError:  # EIO: the other side has closed it
        pass
    os.close(terminal)
    return found


async def test_an_export_and_an_import(service: Service, tmp_path: Path) -> None:
    """A person sees how many conversations are whole."""
    names = [(await service.stub.CreateConversation(create(user_message("a")))).id for _ in range(3)]
    file, target = str(tmp_path / "file.jsonl"), ("--target", service.address)
    code, _, seen = await on_a_terminal("-m", "server", "export", *names, "-o", file, *target)
    assert 0 == code, seen
    assert "conversations exported" in seen
    assert "3/?" in seen
    code, output, seen = await on_a_terminal("-m", "server", "import", file, *target)
    assert (0, "0 imported, 3 there already, 0 refused\n") == (code, output), seen
    assert "3/?" in seen


async def test_a_purge(own_service: Service) -> None:
    """A person sees how many rows are gone; in a pipe nothing is written (tests/cli/test_cli.py)."""
    made = await own_service.stub.CreateConversation(create(*(user_message(f"m{number}") for number in range(5))))
    await own_service.stub.DeleteConversation(delete(made.id))
    code, output, seen = await on_a_terminal("-m", "server", "purge", "--after-hours", "0", url=own_service.url)
    assert 0 == code, seen
    assert "1 conversations, 5 items" in output
    assert "rows removed" in seen
    assert "6/?" in seen
    assert seen.endswith("\x1b[2K"), seen  # the line of the bar is gone


@pytest.mark.slow
async def test_a_migration(postgres: str) -> None:
    """A person sees a bar, and the schema is up to date."""
    async with fresh_database(postgres, "template1") as url:
        code, output, seen = await on_a_terminal("-m", "server", "migrate", url=url)
    assert 0 == code, seen
    assert "schema brought to" in output
    assert "migration" in seen


async def test_an_index_that_is_built(postgres: str, template: str) -> None:
    """A migration that waits for somebody, or reads a large table, says so."""
    async with fresh_database(postgres, template) as url:
        writer, builder = await asyncpg.connect(url), await asyncpg.connect(url)
        steps: list[IndexStep] = []
        try:
            assert await read_step(writer) is None
            holding = writer.transaction()
            await holding.start()
            await writer.execute("UPDATE conversations SET version = version")
            following = asyncio.create_task(follow_migration(url, steps.append))
            building = asyncio.create_task(builder.execute("CREATE INDEX CONCURRENTLY i ON conversations (version)"))
            async with asyncio.timeout(10):
                while not steps:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                await holding.rollback()
                await building
            following.cancel()
            assert IndexStep("conversations", "waiting for writers before build", 0, 0) == steps[0]
        finally:
            await writer.close()
            await builder.close()


async def test_a_migration_of_a_database_that_does_not_answer() -> None:
    """Following ends, and leaves the error to the migration."""
    async with asyncio.timeout(10):
        await follow_migration("postgresql://127.0.0.1:1/none", lambda _step: None)


async def test_a_purge_tells_what_it_removed(own_service: Service) -> None:
    """Each step; without a listener nobody is told."""
    made = await own_service.stub.CreateConversation(create(user_message("a")))
    await own_service.stub.CreateItems(append(made.id, user_message("b")))
    await own_service.stub.DeleteConversation(delete(made.id))
    told: list[int] = []
    token = on_removed.set(told.append)
    try:
        await purge(own_service.url, timedelta(0))
    finally:
        on_removed.reset(token)
    assert 3 == sum(told)


_SCRIPT = """
import sys
from server.cli.progress import progress_bar

with progress_bar("lines", 3, hidden=sys.argv[1] == "hidden") as bar:
    for number in range(3):
        bar.advance()
    bar.show("[bold]words[/]", 1, None)
print("rich" in sys.modules)
"""


@pytest.mark.parametrize("how, shown", [("shown", True), ("hidden", False)])
async def test_a_bar(how: str, shown: bool) -> None:  # noqa: FBT001
    """For the commands that know how much there is to do; its title is text, and a hidden bar loads nothing."""
    code, output, seen = await on_a_terminal("-c", _SCRIPT, how)
    assert (0, f"{shown}\n") == (code, output), seen
    assert shown is ("[bold]words[/]" in seen) is bool(seen)


def test_no_bar_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is written, whatever the command tells."""
    with progress_bar("lines", 3) as bar:
        bar.advance(2)
        bar.show("more", 1, None)
    assert not bar.is_shown
    assert ("", "") == capfd.readouterr()


def test_a_command_that_fails_under_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is the command's, and the bar goes."""
    with pytest.raises(ValueError, match="mine"), progress_bar("lines"):
        raise ValueError("mine")
