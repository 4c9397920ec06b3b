"""Several processes serve one address, and one of them may end without the others."""

import asyncio
import os
import re
import shutil
import signal
import socket
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from conversations.v1.conversations_service_pb2_grpc import ConversationsServiceStub
from structlog.testing import capture_logs

from server.app.reserved_port import reserved
from server.app.supervisor import RestartBackoff, Worker, Workers, WorkersFailed
from server.authorization.policy_file import PolicyConfigError, PolicyFile
from server.errors import StartFailed
from server.settings.addresses import Address
from server.settings.service import SettingsInvalid, load
from tests.support.build import create, user_message
from tests.support.commands import environment, finish, run_command, start_command
from tests.support.postgres import data_folder, fetch, fresh_database, kill_postmasters_in, postmasters_in
from tests.support.service import Service
from tests.support.workers import SOON, Team, eventually, runs, team

POLICY = "- permit: {actions: [create, read, update]}\n"


@pytest.fixture(scope="module")
async def two(postgres: str, template: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Team]:
    """Two workers for all tests that leave two; Ctrl-C ends them with 0."""
    folder = tmp_path_factory.mktemp("workers")
    async with fresh_database(postgres, template) as url:
        policy = folder / "policy.yaml"
        policy.write_text(POLICY, encoding="utf-8")
        more = {"policy_file": str(policy), "purge_every_minutes": "0.002"}
        async with team(url, folder / "log", **more) as served:
            yield served
            assert (0, "Stopping …\n") == await served.stop(signal.SIGINT)
            assert [] == [pid for pid in served.pids().values() if runs(pid)]


@asynccontextmanager
async def client(address: str) -> AsyncIterator[Any]:
    """A client with a connection of its own; channels of one process share theirs unless told not to."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield ConversationsServiceStub(channel)


async def stubborn(address: str) -> None:
    """A call on a new connection, again while the service is unavailable."""
    async with client(address) as stub:

        async def served() -> bool:
            code = await stub.CreateConversation(create()).code()
            assert code in {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
            return code is grpc.StatusCode.OK

        await eventually(served)


# -- the service


async def test_both_workers_serve(two: Team) -> None:
    """Connections to the one address land on both workers; each logs its number."""
    before = two.calls()
    for _ in range(8):
        await asyncio.gather(*(stubborn(two.address) for _ in range(8)))
        if all((two.calls() - before)[number] for number in (0, 1)):
            return
    raise AssertionError(two.calls())


async def test_one_worker_purges(two: Team) -> None:
    """The first worker removes what was deleted, and no other."""
    await eventually(lambda: len(two.lines("purged")) > 5)
    assert {0} == {line["worker"] for line in two.lines("purged")}


async def test_a_signal_to_the_parent_reloads_all(two: Team) -> None:
    """SIGHUP has every worker read the policy again, although the file has not changed since the last look."""
    policy = two.log.parent / "policy.yaml"
    policy.write_text("- permti: {}\n", encoding="utf-8")
    await eventually(lambda: len(two.lines("policy refused")) == 2)
    two.process.send_signal(signal.SIGHUP)
    await eventually(lambda: len(two.lines("policy refused")) == 4)
    assert {0: 2, 1: 2} == Counter(line["worker"] for line in two.lines("policy refused"))
    policy.write_text(POLICY, encoding="utf-8")  # the next worker to start reads it


async def test_a_killed_worker_is_replaced(two: Team) -> None:
    """While a worker is down calls go on by the other, and another takes its place, also on a newer schema."""
    assert two.url is not None
    await fetch(two.url, "UPDATE alembic_version SET version_num = '9999'")
    victim = two.pids()[1]
    running = asyncio.gather(*(stubborn(two.address) for _ in range(30)))
    os.kill(victim, signal.SIGKILL)
    await eventually(lambda: two.pids()[1] != victim)
    await running
    (line,) = [line for line in two.lines("worker ended") if line["pid"] == victim]
    assert (1, -signal.SIGKILL) == (line["worker"], line["exit_code"])
    successor, before = two.pids()[1], two.calls()[1]

    async def is_served_by_the_successor() -> bool:
        await stubborn(two.address)
        return two.calls()[1] > before

    await eventually(is_served_by_the_successor)
    assert successor == two.pids()[1]


async def test_arguments_hold_no_secret(two: Team) -> None:
    """Anyone may read them: they say which worker it is, and no more."""
    for number, pid in two.pids().items():
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        assert ["-P", "-m", "server.app.worker", str(number), ""] == words[1:]


async def test_ctrl_c_is_for_the_parent(two: Team) -> None:
    """A terminal sends it to a whole process group; the workers are none of the parent's."""
    groups = [os.getpgid(pid) for pid in (two.process.pid, *two.pids().values())]
    assert 3 == len(set(groups))


async def test_a_taken_port_is_told(two: Team, service: Service) -> None:
    """Who comes later does not take part of the calls, whether one of the two shares its port or both."""
    starts = [("1", two.address), ("2", two.address), ("2", service.address)]
    words = "Error: Cannot listen on {}: the address is taken or not allowed.\n"
    told = await asyncio.gather(*(refusal(service.url, *start) for start in starts))
    assert [words.format(address) for _, address in starts] == told


async def refusal(url: str, workers: str, listen: str) -> str:
    """What a start that must fail says; one that does not is ended."""
    process = await start_command("serve", "--workers", workers, "--listen", listen, **environment(url))
    try:
        code, output, errors = await finish(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert (1, "") == (code, output)
    return errors


GATE = (
    "CREATE TABLE gate AS SELECT 'shut'",
    """CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        WHILE EXISTS (SELECT FROM gate) LOOP PERFORM pg_sleep(0.1); END LOOP; RETURN NEW;
    END $$""",
    "CREATE TRIGGER wait BEFORE INSERT ON conversations FOR EACH ROW EXECUTE FUNCTION wait()",
)
WAITING = """SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'conversations' AND state = 'active'"""


@pytest.mark.slow
async def test_calls_in_flight_end(postgres: str, template: str, tmp_path: Path) -> None:
    """SIGTERM lets the calls of every worker end, then nothing is left of it."""
    patient = {"pool_size": "16", "statement_timeout_seconds": "60"}
    async with fresh_database(postgres, template) as url, team(url, tmp_path / "log", **patient) as served:
        await fetch(url, *GATE)
        calls = [asyncio.ensure_future(_created(served.address)) for _ in range(16)]

        async def all_wait() -> bool:
            return len(await fetch(url, WAITING)) == 16

        await eventually(all_wait)
        end = asyncio.ensure_future(served.stop())
        await asyncio.sleep(1)
        assert not end.done()
        await fetch(url, "DELETE FROM gate")
        assert ["OK"] * 16 == await asyncio.gather(*calls)
        assert (0, "Stopping …\n") == await end
        assert {0, 1} == set(served.calls())
        assert [] == [pid for pid in served.pids().values() if runs(pid)]
        assert [] == served.lines("worker ended")


async def _created(address: str) -> str:
    large = create(user_message("x" * 300_000))  # does not share a statement
    async with client(address) as stub:
        return (await stub.CreateConversation(large).code()).name  # type: ignore[no-any-return]


@pytest.mark.slow
async def test_workers_do_not_outlive_their_parent(tmp_path: Path) -> None:
    """Killed, it takes them along and leaves the private PostgreSQL to the next, whose end stops it."""
    data = data_folder()
    try:
        async with team(None, tmp_path / "log", data_dir=str(data)) as first:
            assert first.database.endswith("(started)")
            first.process.kill()
            await eventually(lambda: not any(map(runs, first.pids().values())))
            assert 1 == len(postmasters_in(data))
        async with team(None, tmp_path / "log", first.address, data_dir=str(data)) as second:
            assert (first.address, True) == (second.address, second.database.endswith("(joined)"))
            await stubborn(second.address)
            assert (0, "Stopping …\n") == await second.stop()
        assert [] == postmasters_in(data)
    finally:
        kill_postmasters_in(data)
        await eventually(lambda: not postmasters_in(data))
        shutil.rmtree(data)


async def test_what_no_worker_can_use_is_told_once(service: Service, tmp_path: Path) -> None:
    """A broken policy ends the start as it does with one process: all its mistakes in the same words, once."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("- permit: {actions: [creat]}\n- permti: {actions: read}\n", encoding="utf-8")
    with pytest.raises(PolicyConfigError) as problem:
        PolicyFile(policy, (), anonymous=True)
    more = {"policy_file": str(policy), "log_level": "error"}
    told = await run_command("serve", "--listen", "127.0.0.1:0", "--workers", "2", url=service.url, **more)
    assert (1, "", f"Error: {problem.value}\n") == told


def test_a_unix_socket_is_not_shared() -> None:
    """Only one process can serve a socket: more are refused before anything starts."""
    with pytest.raises(SettingsInvalid) as caught:
        load(listen="unix:/tmp/socket", workers=2)
    assert re.fullmatch(r"workers \(CONVERSATIONS_WORKERS\): .*CONVERSATIONS_LISTEN.*", str(caught.value))
    assert 1 == load(listen="unix:/tmp/socket", workers=1).workers


# -- the parent alone


@pytest.mark.parametrize(
    "served, pauses",
    [
        ((0, 1, 0, 0), (0.25, 0.5, 1, 2)),
        ((3600, 3600), (0.25, 0.25)),
        ((0, 0, 3600, 0), (0.25, 0.5, 0.25, 0.5)),
        ((0,) * 2000, (0.25, 0.5, 1, 2, 4, 8, 16, *(30,) * 1993)),
    ],
)
def test_pauses_grow(served: tuple[float, ...], pauses: tuple[float, ...]) -> None:
    """A worker that keeps ending is started ever later, within reason; good service is worth a new beginning."""
    failures = RestartBackoff()
    assert pauses == tuple(failures.pause(each) for each in served)


def shells(script: str, grace: float = SOON) -> Workers:
    """Two workers that are shell scripts."""

    async def start(number: int) -> Process:
        return await asyncio.create_subprocess_exec("sh", "-c", script, stdin=PIPE, stdout=PIPE)

    return Workers((Address("nowhere", 1),), "no database", 2, start, grace)


def served_once(folder: Path, script: str) -> str:
    """A worker whose first start serves until there is a file `end` in the folder; later ones run the script."""
    first = f"mkdir {folder}/a 2>&- || mkdir {folder}/b 2>&-"
    return f"if {first}; then echo null; until [ -e {folder}/end ]; do sleep 0.05; done; else {script}; fi"


async def test_a_start_that_cannot_succeed_ends() -> None:
    """A worker that dies again and again without a word, before all serve, is not started for ever."""
    with capture_logs() as logs, pytest.raises(WorkersFailed, match=r"ended 3 times .* exit code 7"):
        async with shells("exit 7").running():
            raise AssertionError("they serve")
    assert 6 >= len([line for line in logs if line["event"] == "worker started"]) >= 3


async def test_the_service_is_there_when_all_serve(tmp_path: Path) -> None:
    """Who waits for it does not meet half of it."""
    slow = f"sleep 0.3; touch {tmp_path}/late"
    async with shells(f"mkdir {tmp_path}/first 2>&- || {{ {slow}; }}; echo null; read forever").running():
        assert (tmp_path / "late").exists()


async def test_a_worker_that_does_not_end_is_killed() -> None:
    """SIGTERM is not the last word."""
    with capture_logs() as logs:
        async with asyncio.timeout(SOON), shells("trap '' TERM; echo null; read forever", grace=0.2).running():
            pids = [line["pid"] for line in logs]
            assert all(map(runs, pids))
    assert [] == [pid for pid in pids if runs(pid)]
    assert 2 == len([line for line in logs if line["event"].startswith("worker killed")])


async def test_a_restart_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    """Once all have served, a problem of one worker is a line in the log, and the others serve on."""
    with capture_logs() as logs:
        async with shells(served_once(tmp_path, "echo '\"no\"'")).running():
            (tmp_path / "end").touch()
            await eventually(lambda: len([line for line in logs if line.get("problem") == "no"]) >= 4)
    assert all(line["again_in"] <= 2 for line in logs if "again_in" in line)


BROKEN_OFF = "It broke off in the middle of what it had to say."
BROKEN_REPORTS = {
    "half a line": "printf '\"hal'",
    "half a line of one that lives on": "printf '\"hal\\n'; read forever",
    "a line that is no report": "echo served; read forever",
    "a line beyond the limit": "head -c 70000 /dev/zero | tr '\\0' a; read forever",
}


@pytest.mark.parametrize("script", BROKEN_REPORTS.values(), ids=BROKEN_REPORTS)
async def test_a_report_that_breaks_off_ends_the_start(script: str) -> None:
    """A worker that does not say in a line how it is cannot be waited for: it is killed, and the start ends."""
    with capture_logs() as logs, pytest.raises(WorkersFailed, match=BROKEN_OFF):
        async with asyncio.timeout(SOON), shells(script).running():
            raise AssertionError("they serve")
    assert [] == [line["pid"] for line in logs if line["event"] == "worker started" and runs(line["pid"])]


@pytest.mark.parametrize("script", BROKEN_REPORTS.values(), ids=BROKEN_REPORTS)
async def test_a_report_that_breaks_off_later_is_an_end(script: str, tmp_path: Path) -> None:
    """Once all have served, a worker with such a report is killed, told and started again; the others serve on."""
    with capture_logs() as logs:
        async with shells(served_once(tmp_path, script)).running():
            (tmp_path / "end").touch()
            await eventually(lambda: len([line for line in logs if line.get("problem") == BROKEN_OFF]) >= 3)
    ended = [line for line in logs if line.get("problem") == BROKEN_OFF]
    assert {-signal.SIGKILL, 0} >= {line["exit_code"] for line in ended}
    assert [] == [line["pid"] for line in ended if runs(line["pid"])]


async def test_a_report_in_two_pieces_is_one_line() -> None:
    """A line is read to its end, however it arrives."""
    async with asyncio.timeout(SOON), shells("printf nu; sleep 0.2; echo ll; read forever").running():
        pass


class _Signals:
    """Stands for a process, and keeps what it is sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send_signal(self, number: int) -> None:
        self.sent.append(number)


def test_a_reload_waits_for_the_worker() -> None:
    """SIGHUP would end a process that is starting, and must not be lost on it either."""
    process: Any = _Signals()
    worker = Worker(0, process)
    worker.reload()
    assert [] == process.sent
    worker.serves(1.0)
    worker.reload()
    assert [signal.SIGHUP] * 2 == process.sent


# -- the address


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])  # noqa: S104 - one that has it all
def test_a_reserved_port_is_nobody_elses(host: str) -> None:
    """Held for workers, it can be neither used nor held by others, and nobody can connect to it yet."""
    with reserved(Address(host, 0)) as address:
        port = address.port
        assert (host, True) == (address.host, port > 0)
        for options in ([], [socket.SO_REUSEADDR]):
            assert not bindable(port, *options)
        assert bindable(port, socket.SO_REUSEPORT)
        with pytest.raises(StartFailed), reserved(address):
            raise AssertionError("held twice")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert bindable(port)


def bindable(port: int, *options: int) -> bool:
    """Whether a program with these socket options gets the port."""
    with socket.socket() as other:
        for option in options:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        with suppress(OSError):
            other.bind(("127.0.0.1", port))
            return True
    return False


def test_a_port_can_be_used_again_at_once() -> None:
    """Connections that an earlier run has closed, which the kernel remembers for a minute, are not in the way."""
    with socket.socket() as earlier:
        earlier.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        earlier.bind(("127.0.0.1", 0))
        earlier.listen()
        address = Address(*earlier.getsockname())
        with socket.create_connection(earlier.getsockname()):
            earlier.accept()[0].close()
    assert not bindable(address.port)
    with reserved(address) as held:
        assert address == held


def test_an_address_that_this_machine_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may stand for ::1 where there is no IPv6."""
    found = [(socket.AF_INET, 0, 0, "", (host, 0)) for host in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with reserved(Address("here", 0)) as address:
        assert not bindable(address.port)


@pytest.mark.parametrize("listen", ["127.0.0.1:1", "no.such.host.invalid:0"])
def test_an_address_that_is_not_ours_is_told(listen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be bound or found is the same complaint as with one process."""
    monkeypatch.setattr(socket.socket, "bind", _refused)
    with pytest.raises(StartFailed, match=f"Cannot listen on {listen}: "), reserved(Address.parse(listen)):
        raise AssertionError("bound")


def _refused(_self: socket.socket, _address: Any) -> None:
    raise PermissionError(13, "Permission denied")
