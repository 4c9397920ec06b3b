"""The service through a real PgBouncer in transaction mode, configured as docs/scale.md says."""

import asyncio
import os
import re
import socket
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from conversations.v1 import conversations_service_pb2 as pb

from server.store.connection.bounds import Bounds
from server.store.connection.opening import DatabaseConfigError, DatabaseUnreachable
from tests.support.build import (
    ahead,
    append,
    batch_get,
    create,
    delete,
    delete_item,
    delete_many,
    fork,
    get,
    get_item,
    list_items,
    rewind,
    text_of,
    update,
    user_message,
)
from tests.support.database import verified_database
from tests.support.ports import free_port
from tests.support.postgres import EMPTY_TEMPLATE, fetch, fresh_database
from tests.support.problems import problem
from tests.support.service import Service, running_service

pytestmark = pytest.mark.tool("pgbouncer")
DOCUMENT = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
SERVERS = 2  # connections to PostgreSQL
BACKENDS = """
    SELECT pid, state, xact_start IS NOT NULL AS in_transaction FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'conversations'"""


@dataclass(frozen=True)
class Bouncer:
    """A PgBouncer in front of one database, and the address of that without it."""

    url: str
    direct: str


def example() -> str:
    """The configuration that the document prints."""
    (found,) = (each for each in re.findall(r"```ini\n(.*?)```", DOCUMENT, re.DOTALL) if "[pgbouncer]" in each)
    return str(found)


def configured(direct: str, folder: Path, port: int) -> str:
    """The example, for the database at ``direct``, whose sessions it may start without a password of ours."""
    parts = urlsplit(direct)
    query = parse_qs(parts.query)
    server = {
        "host": query.get("host", [parts.hostname])[0],
        "port": query.get("port", [parts.port or 5432])[0],
        "dbname": parts.path.lstrip("/"),
        "user": parts.username or "postgres",
        **({"password": parts.password} if parts.password else {}),
    }
    own = {
        "listen_port": port,
        "auth_type": "any",
        "default_pool_size": SERVERS,
        "unix_socket_dir": folder,
        "query_wait_timeout": 5,
    }
    there = " ".join(f"{name}={value}" for name, value in server.items())
    text, count = re.subn(r"host=\S+ port=\S+ dbname=\S+", there, example())
    assert 1 == count
    for name, value in own.items():
        text = re.sub(rf"^{name} = .*\n", "", text, flags=re.MULTILINE) + f"{name} = {value}\n"
    return re.sub(r"^(auth_file|logfile|pidfile) = .*\n", "", text, flags=re.MULTILINE)


def as_user_of(direct: str) -> list[str]:
    """What starts a program as who may use the socket of a private PostgreSQL; PgBouncer does not run as root either.

    A program of its own: Popen's ``user`` makes it fork, which gRPC's threads do not bear.
    """
    if os.geteuid():
        return []
    place = Path(parse_qs(urlsplit(direct).query).get("host", ["/nowhere"])[0])
    user = place.stat().st_uid if place.exists() else 65534
    return ["setpriv", f"--reuid={user}", "--regid=65534", "--clear-groups"]


@contextmanager
def bouncer(direct: str, *changes: tuple[str, str]) -> Iterator[Bouncer]:
    """PgBouncer in front of the database at ``direct``; each of ``changes`` is made to its configuration."""
    with TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        folder.chmod(0o777)
        text = configured(direct, folder, port)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / "pgbouncer.ini").write_text(text)
        with (folder / "log").open("wb") as log:
            command = [*as_user_of(direct), "pgbouncer", str(folder / "pgbouncer.ini")]
            process: subprocess.Popen[bytes] = subprocess.Popen(command, stderr=log)
        try:
            wait_for(process, port, folder / "log")
            yield Bouncer(f"postgresql://postgres@127.0.0.1:{port}/conversations", direct)
        finally:
            process.kill()
            process.wait()


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Until it listens."""
    while process.poll() is None:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
    pytest.fail(log.read_text())


@pytest.fixture(scope="module")
async def behind(postgres: str, template: str) -> AsyncIterator[Service]:
    """A service that works through PgBouncer."""
    async with fresh_database(postgres, template) as direct:
        with bouncer(direct) as way:
            async with running_service(direct, pgbouncer_url=way.url) as served:
                yield served


def message(item_id: str = "", text: str = "hi") -> Any:
    """A message of a user."""
    return user_message(text, id=item_id)


async def test_every_unary_method(behind: Service) -> None:
    """Each of them does what it does without PgBouncer, one call after another on changing connections."""
    stub = behind.stub
    for _ in range(3):
        made = await stub.CreateConversation(create(message("msg_a", "one"), metadata={"topic": "x"}))
        added = await stub.CreateItems(append(made.id, message("msg_b", "two"), message("msg_c", "three")))
        assert [2, 3] == [item.sequence for item in added.items]
        assert 3 == (await stub.GetConversation(get(made.id))).last_sequence
        changed = await stub.UpdateConversation(update(made.id, "metadata", metadata={"topic": made.id}))
        assert {"topic": made.id} == dict(changed.metadata)
        found = await stub.ListConversations(pb.ListConversationsRequest(filter=f'metadata.topic = "{made.id}"'))
        assert [made.id] == [each.id for each in found.conversations]
        assert "two" == text_of(await stub.GetItem(get_item(made.id, "msg_b")))
        both = await stub.BatchGetItems(batch_get(made.id, "msg_c", "msg_a"))
        assert ["three", "one"] == [text_of(item) for item in both.items]
        assert [3, 2, 1] == [item.sequence for item in (await stub.ListItems(list_items(made.id))).items]
        await stub.DeleteItem(delete_item(made.id, "msg_a"))
        assert "ITEM_NOT_FOUND" == (await problem(stub.GetItem(get_item(made.id, "msg_a")))).reason
        forked = await stub.ForkConversation(fork(made.id, str(uuid4()), through_item_id="msg_b"))
        assert [2] == [item.sequence for item in (await stub.ListItems(list_items(forked.id))).items]
        assert 3 == (await stub.RewindConversation(rewind(made.id, 2, request_id=str(uuid4())))).last_sequence
        assert [2] == [item.sequence for item in (await stub.ListItems(list_items(made.id))).items]
        assert 1 == (await stub.DeleteConversations(delete_many(f'forked_from = "{made.id}"'))).deleted_count
        await stub.DeleteConversation(delete(made.id))
        assert "CONVERSATION_NOT_FOUND" == (await problem(stub.GetConversation(get(made.id)))).reason


async def test_append_items(behind: Service) -> None:
    """A stream of appends is placed in its order."""
    made = await behind.stub.CreateConversation(create())
    texts = [f"{number}" for number in range(100)]

    async def messages() -> AsyncIterator[Any]:
        for text in texts:
            yield ahead(made.id, message(text=text), request_id=str(uuid4()))

    answers = [answer async for answer in behind.stub.AppendItems(messages())]
    assert list(range(1, 101)) == [answer.appended.first_sequence for answer in answers]
    page = await behind.stub.ListItems(list_items(made.id, page_size=100, order=pb.ORDER_ASCENDING))
    assert texts == [text_of(item) for item in page.items]


async def test_many_callers_on_two_connections(behind: Service) -> None:
    """32 callers share two connections to PostgreSQL: no append is lost, no answer is another's."""
    stub, callers, turns = behind.stub, 32, 12
    shared = await stub.CreateConversation(create())

    async def caller(number: int) -> list[int]:
        own = await stub.CreateConversation(create(message(text=str(number))))
        places = []
        for _ in range(turns):
            places.append((await stub.CreateItems(append(shared.id, message(text=str(number))))).items[0].sequence)
            await stub.CreateItems(append(own.id, message(text=str(number))))
            page = await stub.ListItems(list_items(own.id))
            assert {str(number)} == {text_of(item) for item in page.items}
            assert own.id == (await stub.GetConversation(get(own.id))).id
        return places

    places = await asyncio.gather(*map(caller, range(callers)))
    assert all(each == sorted(each) for each in places)
    assert list(range(1, callers * turns + 1)) == sorted(chain.from_iterable(places))
    assert SERVERS == len(await fetch(behind.url, BACKENDS))


async def test_request_ids(behind: Service) -> None:
    """The same request id gives the first answer, also to calls at the same time."""
    stub = behind.stub
    made = await stub.CreateConversation(create())
    requests = [append(made.id, message(), request_id=str(uuid4())) for _ in range(20)]
    answers = await asyncio.gather(*(stub.CreateItems(request) for request in [*requests, *requests]))
    seen = Counter((answer.items[0].sequence, answer.items[0].id) for answer in answers)
    assert {(place, 2) for place in range(1, 21)} == {(place, count) for (place, _), count in seen.items()}


async def test_nothing_stays_behind(behind: Service) -> None:
    """After failures and cancelled calls no session is in a transaction, and none has a statement or a lock."""
    stub = behind.stub
    made = await stub.CreateConversation(create(message("msg_a")))

    async def refused(number: int) -> None:
        await problem(stub.CreateItems(append(made.id, message("msg_a"))))
        await problem(stub.CreateItems(append(made.id, message(), expected_last_sequence=9)))
        call = stub.CreateItems(append(made.id, message()))
        await asyncio.sleep(0.0005 * number)
        call.cancel()

    await asyncio.gather(*map(refused, range(32)))
    await stub.GetConversation(get(made.id))
    for _ in range(100):  # a cancelled statement may take a moment more
        states = {(row["state"], row["in_transaction"]) for row in await fetch(behind.url, BACKENDS)}
        if states == {("idle", False)}:
            break
        await asyncio.sleep(0.05)
    assert {("idle", False)} == states
    locks = "SELECT FROM pg_locks WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    others = "SELECT pid FROM pg_stat_activity WHERE application_name <> 'conversations activity'"  # holds one for ever
    assert [] == await fetch(behind.url, f"{locks} AND pid <> pg_backend_pid() AND pid IN ({others})")
    rows = await behind.database.pool.fetch("SELECT count(*) AS count FROM pg_prepared_statements WHERE name <> ''")
    assert 0 == rows[0]["count"]


async def test_sessions_have_our_settings(behind: Service) -> None:
    """Each session behind PgBouncer walks indexes and has its time limits, as without it."""
    names = ", ".join(f"current_setting('{name}') AS {name}" for name in Bounds().session())
    rows = await asyncio.gather(*(behind.database.pool.fetch(f"SELECT {names}, pg_sleep(0.05)") for _ in range(4)))
    for row in (rows[0] for rows in rows):
        assert ("off", "off", "off", "force_generic_plan") == tuple(row)[:4]
        assert ("5s", "2s", "10s") == tuple(row)[4:7]


async def test_a_statement_takes_one_round_trip(behind: Service) -> None:
    """What a statement's columns are is asked once for a connection, not for every call."""
    async with behind.database.pool.acquire() as connection:
        await connection.fetch("SELECT $1::int AS n", 0)
        asked: list[str] = []
        prepare = type(connection._con).prepare

        async def counted(self: Any, query: str, **more: Any) -> Any:
            asked.append(query)
            return await prepare(self, query, **more)

        type(connection._con).prepare = counted
        try:
            assert [1, 2] == [(await connection.fetch("SELECT $1::int AS n", n))[0]["n"] for n in (1, 2)]
            assert [3, 4] == [row["n"] for row in await connection.fetchmany("SELECT $1::int AS n", [(3,), (4,)])]
        finally:
            type(connection._con).prepare = prepare
        assert [] == asked


async def test_a_lost_session_is_replaced(behind: Service) -> None:
    """When PostgreSQL ends the sessions of PgBouncer, reads and repeatable writes go through all the same."""
    made = await behind.stub.CreateConversation(create())
    end = f"SELECT pg_terminate_backend(pid) FROM ({BACKENDS}) AS backends"
    for number in range(3):
        await fetch(behind.url, end)
        request = append(made.id, message(), request_id=str(uuid4()))
        assert number + 1 == (await behind.stub.CreateItems(request)).items[0].sequence
        await fetch(behind.url, end)
        assert number + 1 == (await behind.stub.GetConversation(get(made.id))).last_sequence


async def test_migrations_go_to_the_database_itself(postgres: str) -> None:
    """An empty database is brought up to date at the start: its session lock needs no PgBouncer."""
    async with fresh_database(postgres, EMPTY_TEMPLATE) as direct:
        with bouncer(direct) as way:
            async with running_service(direct, pgbouncer_url=way.url) as served:
                await served.stub.CreateConversation(create())


async def start(url: str) -> None:
    """Opens the database at ``url`` as calls do."""
    async with verified_database(url, 2, Bounds(connect=2), unsafe_durability=True, via_pgbouncer=True):
        pass


async def test_settings_that_are_missing_stop_the_start(postgres: str, template: str) -> None:
    """Without its connect_query PgBouncer is refused, and each setting is named."""
    async with fresh_database(postgres, template) as direct:
        bare = ("connect_query='", "connect_query='SELECT 1 -- ")
        with bouncer(direct, bare) as way, pytest.raises(DatabaseConfigError) as caught:
            await start(way.url)
    told = str(caught.value)
    assert "connect_query" in told
    assert all(f"{name} is " in told for name in Bounds().session())


async def test_refusals_stop_the_start(postgres: str, template: str) -> None:
    """A database that PgBouncer or PostgreSQL does not know is one line; so is a PgBouncer that is not there."""
    async with fresh_database(postgres, template) as direct:
        with bouncer(direct) as way, pytest.raises(DatabaseConfigError, match="08P01"):
            await start(way.url.replace("/conversations", "/nowhere"))
        with pytest.raises(DatabaseUnreachable):
            await start(way.url)
        name = urlsplit(direct).path.lstrip("/")
        lost = (f"dbname={name}", "dbname=nowhere")
        with bouncer(direct, lost) as way, pytest.raises(DatabaseConfigError, match="08P01"):
            await start(way.url)


async def test_pgbouncer_is_not_taken_for_postgresql(postgres: str, template: str) -> None:
    """Its address as that of the database is refused, and the refusal says what to do."""
    async with fresh_database(postgres, template) as direct:
        with bouncer(direct) as way, pytest.raises(DatabaseConfigError, match="PgBouncer"):
            async with verified_database(way.url, 2, Bounds(), unsafe_durability=True):
                pass
