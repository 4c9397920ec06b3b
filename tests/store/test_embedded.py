"""The private PostgreSQL: sharing, crashes, permissions. Every test leaves no server behind."""

import asyncio
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import grpc
import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub

from server.app.service import run_service
from server.settings.service import load
from server.store.embedded import EmbeddedError, default_data_dir, run_embedded
from server.store.embedded.binaries import find_programs
from server.store.embedded.initdb import CLUSTER
from server.store.embedded.launch import LOG_LIMIT
from server.store.embedded.os_user import SERVICE_ID, OsUser
from server.store.embedded.postmaster import is_running
from server.store.embedded.server import Server
from server.store.embedded.sockets import socket_dir_for
from tests.support.build import create, get
from tests.support.postgres import data_folder, kill_postmasters_in, postmasters_in

AS_ROOT = os.geteuid() == 0
OWNER = """
import asyncio, sys
from pathlib import Path
from server.store.embedded import run_embedded

async def main():
    async with run_embedded(Path(sys.argv[1])) as server:
        print(server.started, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    path = data_folder()
    yield path
    remains = kill_postmasters_in(path)
    shutil.rmtree(path)
    assert not remains, "a server was left behind"


@pytest.fixture(scope="module")
def shared() -> Iterator[Path]:
    """One cluster for all tests that are not about creating or breaking one."""
    path = data_folder()
    asyncio.run(use(path))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def data(shared: Path) -> Iterator[Path]:
    yield shared
    assert not kill_postmasters_in(shared), "a server was left behind"


@pytest.fixture
def copy(folder: Path, shared: Path) -> Path:
    """For a test that breaks or moves its cluster."""
    subprocess.run(["cp", "-a", str(shared), str(folder / "data")], check=True)
    return folder / "data"


async def use(path: Path) -> None:
    async with run_embedded(path):
        pass


def owner(path: Path) -> subprocess.Popen[str]:
    """Another process that uses the folder until its input ends; gives it once it is inside."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", OWNER, str(path)]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
    )


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


async def query(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_first_start_makes_a_private_durable_server_and_a_restart_keeps_data(folder: Path) -> None:
    """The first start makes a durable server that only its own user reaches, and a restart keeps the data."""
    data = folder / "new" / "data"
    async with run_embedded(data) as server:
        assert (server.started, server.data_dir) == (True, data)
        assert server.version.startswith("18.")
        await query(server.url, "CREATE TABLE kept AS SELECT 'é' AS value")
        settings = ("fsync", "synchronous_commit", "full_page_writes", "data_checksums", "listen_addresses")
        assert [await query(server.url, f"SHOW {name}") for name in settings] == ["on"] * 4 + [""]
        assert stat.S_IMODE((data / CLUSTER).stat().st_mode) == 0o700
        assert (data / CLUSTER).stat().st_uid == (SERVICE_ID if AS_ROOT else os.geteuid())
    assert postmasters_in(folder) == []
    async with run_embedded(data) as server:
        assert server.started
        assert await query(server.url, "SELECT value FROM kept") == "é"
    assert sorted(path.name for path in data.iterdir()) == [
        CLUSTER,
        f"{CLUSTER}.lock",
        f"{CLUSTER}.users",
        "postgres.log",
    ]


async def test_users_share_one_server_and_the_last_stops_it(data: Path) -> None:
    """Processes that use the same folder share one server, and the last to leave stops it."""
    async with run_embedded(data) as first:
        with owner(data) as other:
            assert first_line(other) == "False"
            async with run_embedded(data) as third:
                assert (first.started, third.started, third.url) == (True, False, first.url)
            assert await query(first.url, "SELECT 1") == 1
            other.communicate("")
        assert other.returncode == 0
        assert await query(first.url, "SELECT 1") == 1
        assert len(postmasters_in(data)) == 1
    assert postmasters_in(data) == []


async def test_the_server_outlives_the_user_who_started_it(data: Path) -> None:
    """The server runs on when the process that started it leaves before others."""
    with owner(data) as starter:
        assert first_line(starter) == "True"
        async with run_embedded(data) as server:
            starter.communicate("")
            assert starter.returncode == 0
            assert not server.started
            assert await query(server.url, "SELECT 1") == 1
    assert postmasters_in(data) == []


async def test_users_arriving_at_the_same_time_start_one_server(folder: Path) -> None:
    """Of several that start at the same time exactly one starts the server."""
    data, barrier = folder / "data", asyncio.Barrier(4)

    async def visit() -> bool:
        async with run_embedded(data) as server:
            await barrier.wait()
            return server.started

    assert sorted(await asyncio.gather(*(visit() for _ in range(4)))) == [False, False, False, True]
    assert postmasters_in(folder) == []


async def test_the_server_of_a_killed_owner_is_adopted(data: Path) -> None:
    """The next process joins the server of one that was killed, and stops it when it leaves."""
    with owner(data) as victim:
        assert first_line(victim) == "True"
        victim.kill()
    [orphan] = postmasters_in(data)
    async with run_embedded(data) as server:
        assert not server.started
        assert postmasters_in(data) == [orphan]
        assert await query(server.url, "SELECT 1") == 1
    assert postmasters_in(data) == []


async def test_ctrl_c_in_the_terminal_does_not_reach_the_server(data: Path) -> None:
    """The server has a session of its own, so a terminal's Ctrl-C does not reach it."""
    async with run_embedded(data):
        [pid] = postmasters_in(data)
        assert os.getsid(pid) != os.getsid(0)


async def test_a_crashed_server_with_a_reused_process_number_starts_again(copy: Path) -> None:
    """A server starts after a crash, although another process has its number by now, and has its data."""
    async with run_embedded(copy) as server:
        await query(server.url, "CREATE TABLE kept AS SELECT 1 AS value")
        postmaster_file = (copy / CLUSTER / "postmaster.pid").read_text()
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
            assert len(kill_postmasters_in(copy)) == 1
            while True:
                await query(server.url, "SELECT 1")
    stale = copy / CLUSTER / "postmaster.pid"
    lines = postmaster_file.splitlines()
    ours = Path("/proc/self/cmdline").read_text().split("\0")[0]  # the file even names what we run
    stale.write_text("\n".join([str(os.getpid()), ours, *lines[2:]]))
    os.chown(stale, (copy / CLUSTER).stat().st_uid, (copy / CLUSTER).stat().st_gid)
    if not AS_ROOT:
        stale.unlink()  # our own number would be a live process of the server's user: PostgreSQL refuses that
    async with run_embedded(copy) as server:
        assert server.started
        assert await query(server.url, "SELECT value FROM kept") == 1


# It replaces its program three hundred times, and has the same last argument each time.
_REPLACED = 'if [ "$1" != 0 ]; then exec /bin/sh -c "$0" "$0" "$(($1 - 1))" "$2"; fi'


def test_a_server_runs_in_the_middle_of_an_exec() -> None:
    """A process has no command line for a moment when its program is replaced; it runs all the same."""
    process = subprocess.Popen(["/bin/sh", "-c", _REPLACED, _REPLACED, "300", "/the/cluster"])
    while is_running(process.pid, "/the/cluster", os.getuid()):
        pass
    assert 0 == process.poll(), "the process ran on"


async def test_an_interrupted_initdb_leaves_no_half_cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An initdb that fails or is killed leaves nothing that the next start would take for a cluster."""

    def interrupted(programs: Path, half: Path, user: object) -> None:
        (half / "PG_VERSION").write_text("18")
        raise EmbeddedError("interrupted")

    with monkeypatch.context() as patch, pytest.raises(EmbeddedError, match="interrupted"):
        patch.setattr("server.store.embedded.initdb._initdb", interrupted)
        await use(folder)
    assert not list(folder.glob(f"{CLUSTER}*/*"))
    (folder / f"{CLUSTER}.new-killed").mkdir()  # what a kill -9 would leave
    async with run_embedded(folder) as server:
        assert await query(server.url, "SELECT 1") == 1
    assert not list(folder.glob(f"{CLUSTER}.new-*"))


async def test_cancelling_a_start_leaves_no_server(data: Path) -> None:
    """A start that is cancelled at any moment leaves no server running."""
    for delay in (0.001, 0.01, 0.02, 0.03):
        task = asyncio.create_task(use(data))
        await asyncio.sleep(delay)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert postmasters_in(data) == []


async def test_permissions_of_existing_folders_stay(data: Path) -> None:
    """A start changes mode and owner of no folder that was there."""
    wheel = find_programs(data, OsUser())
    watched = [data, *data.parents, wheel / "postgres", *wheel.parents]
    before = [(path.stat().st_mode, path.stat().st_uid) for path in watched]
    await use(data)
    assert [(path.stat().st_mode, path.stat().st_uid) for path in watched] == before


@pytest.mark.skipif(not AS_ROOT, reason="only root's server runs as someone else")
async def test_a_closed_parent_is_named_and_stays_closed(folder: Path) -> None:
    """A parent folder that the server's user cannot enter ends the start with its name, and is not opened."""
    closed = folder / "closed"
    closed.mkdir(0o700)
    with pytest.raises(EmbeddedError, match=rf"cannot enter {closed} .*CONVERSATIONS_DATA_DIR"):
        await use(closed / "data")
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@pytest.mark.skipif(not AS_ROOT, reason="only root's server runs as someone else")
async def test_root_leaves_a_users_private_folder_to_that_user(folder: Path) -> None:
    """A server that root starts in a user's private folder runs as that user."""
    user = pwd.getpwnam("nobody")
    data = folder / "data"
    data.mkdir(0o700)
    os.chown(data, user.pw_uid, user.pw_gid)
    async with run_embedded(data) as server:
        assert await query(server.url, "SELECT 1") == 1
    assert {path.stat().st_uid for path in (data, *data.iterdir())} == {user.pw_uid}


@pytest.mark.skipif(not AS_ROOT, reason="only root's server runs as someone else")
async def test_programs_out_of_reach_are_copied_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL's programs are copied once when the server's user cannot enter their folder."""
    original = OsUser.first_closed

    def wheel_closed(self: OsUser, path: Path) -> Path | None:
        return path if "pginstall18" in path.parts else original(self, path)

    monkeypatch.setattr(OsUser, "first_closed", wheel_closed)
    (folder / "runtime-0").mkdir()
    await use(folder)
    [programs] = folder.glob("runtime-*")
    made = programs.stat().st_mtime_ns
    async with run_embedded(folder):
        [pid] = postmasters_in(folder)
        assert Path(f"/proc/{pid}/cmdline").read_text().startswith(str(programs))
    assert programs.stat().st_mtime_ns == made


@pytest.mark.parametrize("name", ["long" * 25, "with space, comma & ünïcode?"])
async def test_a_folder_unfit_for_a_socket_uses_a_short_private_one(copy: Path, name: str) -> None:
    """A path that no socket can have is replaced by a short folder that nobody else can enter."""
    odd = copy.rename(copy.with_name(name))
    async with run_embedded(odd) as server:
        assert await query(server.url, "SELECT 1") == 1
        short = socket_dir_for(odd / CLUSTER)
        assert short.parent == Path("/tmp")
        assert stat.S_IMODE(short.stat().st_mode) == 0o700
        async with run_embedded(odd) as joined:
            assert joined.url == server.url
    assert not short.exists()
    short.mkdir()
    short.chmod(0o777)
    with pytest.raises(EmbeddedError, match="not private"):
        await use(odd)
    short.rmdir()


async def test_a_broken_cluster_shows_the_end_of_its_log(copy: Path) -> None:
    """The error of a start that fails ends with the end of PostgreSQL's log."""
    shutil.rmtree(copy / CLUSTER / "pg_wal")
    with pytest.raises(EmbeddedError, match=r"did not start.*postgres\.log:\n(?s:.*)FATAL:.*pg_wal"):
        await use(copy)
    assert postmasters_in(copy) == []


async def test_a_silent_server_is_given_up_and_stopped(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer in time is stopped, and the start fails."""

    async def deaf(self: object) -> None:
        return None

    monkeypatch.setattr("server.store.embedded.server.SILENCE_SECONDS", 0.1)
    monkeypatch.setattr(Server, "query_version", deaf)
    with pytest.raises(EmbeddedError, match="does not answer"):
        await use(data)
    assert postmasters_in(data) == []


async def test_the_log_is_bounded_and_holds_no_conversations(data: Path) -> None:
    """PostgreSQL's log is cut when it is too long, and never has a value of a statement."""
    (data / "postgres.log").write_text("old\n" * (LOG_LIMIT // 4 + 1))
    async with run_embedded(data) as server:
        await query(server.url, "CREATE TABLE t (v text PRIMARY KEY)")
        await query(server.url, "INSERT INTO t VALUES ('private words')")
        with pytest.raises(asyncpg.UniqueViolationError):
            await query(server.url, "INSERT INTO t VALUES ('private words')")
    text = (data / "postgres.log").read_text()
    assert "duplicate key" in text
    assert "private words" not in text
    assert "old" not in text


async def test_an_unusable_folder_is_explained(folder: Path) -> None:
    """A file in the place of the folder ends the start with an error that names the way out."""
    (folder / "file").touch()
    with pytest.raises(EmbeddedError, match=r"Cannot run .*File exists.*CONVERSATIONS_DATABASE_URL"):
        await use(folder / "file")


async def test_a_missing_wheel_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PostgreSQL's package the error names the extra to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r"conversation-service\[embedded\].*CONVERSATIONS_DATABASE_URL"):
        await use(folder)


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's data lies in /var/lib, a user's in the folder that XDG names."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_data_dir() == Path("/var/lib/conversations")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", "/home/someone/data")
    assert default_data_dir() == Path("/home/someone/data/conversations")


async def test_a_killed_server_is_started_again_by_one_of_its_users(data: Path) -> None:
    """A server that is killed comes back with its data, once, however many use it."""
    async with run_embedded(data) as first, run_embedded(data):
        await query(first.url, "CREATE TABLE IF NOT EXISTS survives AS SELECT 1 AS value")
        for signal_number in (signal.SIGKILL, signal.SIGQUIT):
            [pid] = postmasters_in(data)
            os.kill(pid, signal_number)
            assert 1 == await answer_of(first.url, "SELECT value FROM survives")
            assert len(postmasters_in(data)) == 1
        await query(first.url, "DROP TABLE survives")
    assert postmasters_in(data) == []


async def test_a_service_outlives_its_embedded_database(data: Path) -> None:
    """When the private PostgreSQL is killed, calls fail for a moment and then go on as before."""
    settings = {"listen": "127.0.0.1:0", "data_dir": data, "purge_every_minutes": 0, "grace_seconds": 1}
    async with run_service(load(**settings)) as served, grpc.aio.insecure_channel(str(served.address)) as channel:
        stub = ConversationsServiceStub(channel)
        made = await stub.CreateConversation(create())
        [pid] = postmasters_in(data)
        os.kill(pid, signal.SIGKILL)
        codes = []
        async with asyncio.timeout(20):
            while (code := await stub.GetConversation(get(made.id)).code()) is not grpc.StatusCode.OK:
                codes.append(code)
                await asyncio.sleep(0.05)
        assert {grpc.StatusCode.UNAVAILABLE} >= set(codes)
    assert postmasters_in(data) == []


async def answer_of(url: str, sql: str) -> object:
    """The answer, once the server gives one."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await query(url, sql)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.02)
