"""A changed policy is in force at once; a broken one never is."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1 import access_service_pb2 as pb
from conversations.v1.access_service_pb2_grpc import AccessServiceStub
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from structlog.testing import capture_logs

from server.app.service import run_service
from server.authorization import policy_file
from server.authorization.policy_file import PolicyConfigError, PolicyFile
from server.settings.service import load
from tests.support.build import create
from tests.support.commands import finish, run_command, server_process
from tests.support.service import Service

ALICE = (("x-principal", "alice"), ("x-tenant", "acme"))
OPEN = "- permit: {actions: [create, read, explain]}\n"
SHUT = "- permit: {actions: [update, read, explain]}\n"  # of the same length
BROKEN = "- permit: {actions: [creat]}\n- permti: {actions: read}\n"
SECONDS = 2.0  # from a change to its effect


@dataclass(frozen=True)
class Client:
    """Alice, behind a proxy."""

    conversations: Any
    access: Any

    async def may_create(self) -> bool:
        """Whether the policy in force lets her."""
        call = self.conversations.CreateConversation(create(), metadata=ALICE)
        code = await call.code()
        assert code in {grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED}
        return bool(code is grpc.StatusCode.OK)

    async def digest(self) -> str:
        """Of the policy in force."""
        asked = pb.ExplainAccessRequest(permission=pb.Permission(resource="policy", action="explain"))
        return str((await self.access.ExplainAccess(asked, metadata=ALICE)).policy_digest)


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Client]:
    """A client on a Unix socket."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.default_authority", "localhost")]) as channel:
        yield Client(ConversationsServiceStub(channel), AccessServiceStub(channel))


@pytest.fixture(autouse=True)
def short_period(monkeypatch: pytest.MonkeyPatch) -> None:
    """The services of these tests look at their policy twenty times a second; processes of their own do not."""
    monkeypatch.setattr(policy_file, "_POLL_SECONDS", 0.05)


@asynccontextmanager
async def served(url: str, folder: Path, policy: Path) -> AsyncIterator[tuple[Client, PolicyFile]]:
    """A service that obeys the policy, and Alice."""
    values: dict[str, Any] = {"database_url": url, "identity": "proxy", "policy_file": policy}
    settings = load(listen=f"unix:{folder}/s", purge_every_minutes=0, grace_seconds=1, **values)
    async with run_service(settings) as running, client(running.address) as alice:
        yield alice, running.policy


async def eventually(holds: Callable[[], Awaitable[bool]], seconds: float = SECONDS) -> bool:
    """Whether it does within that time."""
    for _ in range(int(seconds / 0.05)):
        if await holds():
            return True
        await asyncio.sleep(0.05)
    return False


def digest_of(text: str) -> str:
    """As sha256sum prints it."""
    return sha256(text.encode()).hexdigest()


async def test_a_change_is_in_force(service: Service, short_folder: Path) -> None:
    """Written in place or moved there: soon every call is decided by the new text, on the same connection."""
    policy, next_one = short_folder / "policy.yaml", short_folder / "next"
    policy.write_text(OPEN, encoding="utf-8")
    async with served(service.url, short_folder, policy) as (alice, file):
        assert await alice.may_create()
        assert digest_of(OPEN) == await alice.digest()
        with capture_logs() as logs:
            policy.write_text(SHUT, encoding="utf-8")
            assert await eventually(lambda: differs(alice, OPEN))
            assert not await alice.may_create()
            assert digest_of(SHUT) == await alice.digest()
            next_one.write_text(OPEN, encoding="utf-8")
            next_one.replace(policy)
            assert await eventually(alice.may_create)
        assert (2, 0) == (file.reloads, file.refused)
    loaded = [line for line in logs if line["event"] == "policy loaded"]
    assert [digest_of(SHUT), digest_of(OPEN)] == [line["digest"] for line in loaded]
    assert {(str(policy), 1)} == {(line["file"], line["rules"]) for line in loaded}


async def differs(alice: Client, text: str) -> bool:
    """Whether another policy than ``text`` is in force."""
    return digest_of(text) != await alice.digest()


async def test_a_configmap_is_swapped(service: Service, short_folder: Path) -> None:
    """As Kubernetes does it: the link stays, the folder it leads through is another; size and time are the same."""
    for name, text in (("..1", OPEN), ("..2", SHUT)):
        (short_folder / name).mkdir()
        (short_folder / name / "policy.yaml").write_text(text, encoding="utf-8")
        os.utime(short_folder / name / "policy.yaml", (1, 1))
    (short_folder / "..data").symlink_to("..1")
    (short_folder / "policy.yaml").symlink_to("..data/policy.yaml")
    async with served(service.url, short_folder, short_folder / "policy.yaml") as (alice, _):
        assert await alice.may_create()
        (short_folder / "..tmp").symlink_to("..2")
        (short_folder / "..tmp").replace(short_folder / "..data")
        assert await eventually(lambda: differs(alice, OPEN))
        assert digest_of(SHUT) == await alice.digest()
        assert not await alice.may_create()


async def test_a_broken_file_changes_nothing(service: Service, short_folder: Path) -> None:
    """The last good policy stays in force, ExplainAccess names it, the log says why; mended, it is taken."""
    policy = short_folder / "policy.yaml"
    policy.write_text(OPEN, encoding="utf-8")
    async with served(service.url, short_folder, policy) as (alice, file):
        with capture_logs() as logs:
            policy.write_text(BROKEN, encoding="utf-8")
            assert await eventually(lambda: refused(file, 1))
            await asyncio.sleep(0.3)  # at the next looks it is the same broken file
        assert (0, 1) == (file.reloads, file.refused)
        assert digest_of(OPEN) == await alice.digest()
        assert await alice.may_create()
        (line,) = [line for line in logs if line["event"] == "policy refused"]
        assert ("warning", digest_of(OPEN)) == (line["log_level"], line["in_force"])
        assert f"{policy}:1:22: rule 1: " in line["problems"]
        assert f"{policy}:2:3: rule 2: " in line["problems"]
        policy.write_text(SHUT, encoding="utf-8")
        assert await eventually(lambda: differs(alice, OPEN))
        assert (1, 1) == (file.reloads, file.refused)


async def refused(file: PolicyFile, count: int) -> bool:
    """Whether so many changes were refused."""
    return file.refused == count


async def test_a_removed_file_changes_nothing(service: Service, short_folder: Path) -> None:
    """Without its file, or with one that cannot be read, the last good policy stays until there is a good one."""
    policy = short_folder / "policy.yaml"
    policy.write_text(OPEN, encoding="utf-8")
    async with served(service.url, short_folder, policy) as (alice, file):
        with capture_logs() as logs:
            policy.unlink()
            assert await eventually(lambda: refused(file, 1))
            assert digest_of(OPEN) == await alice.digest()
            policy.write_bytes(b"# \xe9\n")
            assert await eventually(lambda: refused(file, 2))
            assert await alice.may_create()
            policy.write_text(SHUT, encoding="utf-8")
            assert await eventually(lambda: differs(alice, OPEN))
        told = [line["problems"] for line in logs if line["event"] == "policy refused"]
        assert [f"{policy}: cannot be read ({why})" for why in ("FileNotFoundError", "UnicodeDecodeError")] == told


async def test_sighup(service: Service, short_folder: Path) -> None:
    """The signal reads the file at once, changed or not, and ends nobody."""
    policy = short_folder / "policy.yaml"
    policy.write_text(OPEN, encoding="utf-8")
    listen = f"unix:{short_folder}/s"
    settings = {"identity": "proxy", "policy_file": str(policy), "log_format": "json"}
    async with server_process(service.url, listen, **settings) as (server, _), client(listen) as alice:
        assert await alice.may_create()
        policy.write_text(SHUT, encoding="utf-8")
        server.send_signal(signal.SIGHUP)
        assert await eventually(lambda: differs(alice, OPEN), 0.8)
        assert not await alice.may_create()
        policy.write_text(BROKEN, encoding="utf-8")
        await asyncio.sleep(1.5)  # the change is seen without a signal
        for _ in range(2):
            server.send_signal(signal.SIGHUP)
            await asyncio.sleep(0.3)
        assert digest_of(SHUT) == await alice.digest()
        server.terminate()
        code, _, errors = await finish(server)
    assert 0 == code
    assert (1, 3) == (errors.count('"event": "policy loaded"'), errors.count('"event": "policy refused"'))


async def test_a_broken_file_at_the_start(short_folder: Path) -> None:
    """There is no last good policy: the start fails, with every problem and its place."""
    policy = short_folder / "policy.yaml"
    policy.write_text(BROKEN, encoding="utf-8")
    code, output, errors = await run_command("serve", policy_file=str(policy))
    assert (1, "") == (code, output)
    first, second, *more = errors.splitlines()
    assert first.startswith(f"Error: {policy}:1:22: rule 1: unknown action")
    assert second.startswith(f"{policy}:2:3: rule 2: unknown key")
    assert [f"{policy}:2:3: rule 2: a rule has a permit or a forbid"] == more


async def test_a_missing_file_at_the_start(short_folder: Path) -> None:
    """A file that is not there is not the default policy."""
    missing = short_folder / "no.yaml"
    with pytest.raises(PolicyConfigError, match=f"{missing}: cannot be read"):
        PolicyFile(missing, (), anonymous=True)


def test_without_a_file_there_is_nothing_to_reload() -> None:
    """A signal without a policy file leaves the built-in policy in force."""
    for anonymous, expected in ((True, "one-user"), (False, "default")):
        file = PolicyFile(None, (), anonymous=anonymous)
        file.reload()
        assert (0, 0, expected) == (file.reloads, file.refused, file.accesses.policy.digest)
