"""`serve --ephemeral`: a service for a test run, which leaves nothing behind."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import gettempdir

import pytest
from conversations_client import connect
from conversations_client.ephemeral import (
    COMMAND_VARIABLE,
    EphemeralService,
    ServiceNotStartedError,
    default_command,
    ephemeral_service,
)
from typer.testing import CliRunner

from server.app.ephemeral import parent_ended
from server.cli.commands import app
from server.errors import OperatorError
from tests.support.build import create
from tests.support.commands import ROOT, environment
from tests.support.postgres import postmasters_in

COMMAND = (sys.executable, "-m", "server")
# A parent that starts the service as its child, tells what it printed, and waits.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "server", "serve", "--ephemeral"], stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), end="", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is started here finds the service."""
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
async def test_it_serves_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has an empty database whatever this environment says, and its settings; SIGTERM ends it and PostgreSQL."""
    monkeypatch.setenv("CONVERSATIONS_DATABASE_URL", "postgresql://127.0.0.1:1/other")
    with ephemeral_service(COMMAND, log_level="error") as service:
        assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", service.address)
        assert Path(service.data_dir).is_relative_to(gettempdir())
        async with connect(service.address) as client:
            assert (await client.conversations.CreateConversation(create())).id
        assert postmasters_in(Path(service.data_dir))
    assert not Path(service.data_dir).exists()
    assert [] == postmasters_in(Path(service.data_dir))


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["parent", "service"])
async def test_nothing_is_left_when_it_is_killed(killed: str) -> None:
    """SIGKILL of the parent ends the service, and that of the service lets PostgreSQL end."""
    with subprocess.Popen(
        (sys.executable, "-c", PARENT), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
    ) as parent:
        assert parent.stdout
        pid, told = parent.stdout.readline().decode().split(" ", 1)
        service = EphemeralService(**json.loads(told), pid=int(pid))
        assert postmasters_in(Path(service.data_dir))
        os.kill(parent.pid if killed == "parent" else service.pid, signal.SIGKILL)
        await is_gone(service)
        parent.kill()


async def test_a_parent_that_has_ended_already() -> None:
    """It may end in the moment in which it is told the address; 0 is the number of no process."""
    await asyncio.wait_for(parent_ended(0), 1)


async def is_gone(service: EphemeralService) -> None:
    """Waits until the folder of a service is removed, and nothing runs in it."""
    until = time.monotonic() + 30
    while Path(service.data_dir).exists():
        assert time.monotonic() < until, "its folder is left"
        await asyncio.sleep(0.05)
    assert [] == postmasters_in(Path(service.data_dir))


def test_another_database_is_refused(tmp_path: Path) -> None:
    """A database that is configured is never taken for one that may vanish."""
    for flags in (("--database-url", "postgresql://127.0.0.1:1/db"), ("--data-dir", str(tmp_path))):
        error = CliRunner().invoke(app, ["serve", "--ephemeral", *flags]).exception
        assert isinstance(error, OperatorError)
        assert "--ephemeral" in str(error)


def test_why_it_did_not_start_is_told(tmp_path: Path) -> None:
    """A program that is missing, and one that ends."""
    with pytest.raises(ServiceNotStartedError, match="No such file"), ephemeral_service([str(tmp_path / "missing")]):
        pass
    ends = [sys.executable, "-c", "import sys; sys.exit('no database')"]
    with pytest.raises(ServiceNotStartedError, match="no database"), ephemeral_service(ends):
        pass


def test_how_it_is_started_can_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service in an environment of its own is not on the path."""
    monkeypatch.delenv(COMMAND_VARIABLE, raising=False)
    assert ["conversation-service"] == default_command()
    monkeypatch.setenv(COMMAND_VARIABLE, "/opt/conversations/bin/python -m server")
    assert ["/opt/conversations/bin/python", "-m", "server"] == default_command()
