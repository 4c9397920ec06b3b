"""Connections to the host that takes writes, whatever the other hosts of the URL do."""

import asyncio
import time
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from server.store.connection.bounds import Bounds
from server.store.connection.connector import Connector, hosts_of
from server.store.connection.opening import DatabaseConfigError, DatabaseUnreachable, direct_connection, open_database
from server.store.embedded import run_embedded
from server.store.migrate import migrate
from tests.support.build import create, get
from tests.support.postgres import data_folder, execute, fresh_database
from tests.support.service import running_service
from tests.support.tcp_proxy import tcp_proxy


@pytest.mark.parametrize(
    ("url", "hosts"),
    [
        ("postgresql:///name", []),
        ("postgresql://one/name", [("one", None)]),
        ("postgresql://u:p@one:5433/name", [("one", 5433)]),
        ("postgresql://u@one,two:5433/name", [("one", None), ("two", 5433)]),
        ("postgresql://[::1]:5433,[fe80::1]/name", [("::1", 5433), ("fe80::1", None)]),
        ("postgresql:///name?host=one,two&port=1,2", [("one", 1), ("two", 2)]),
        ("postgresql:///name?host=/run/a,/run/b&port=5433", [("/run/a", 5433), ("/run/b", 5433)]),
        ("postgresql://u@/name?host=%2Frun%2Fa", [("/run/a", None)]),
    ],
)
def test_hosts_of_a_url(url: str, hosts: list[tuple[str, int | None]]) -> None:
    """All forms in which libpq takes several hosts are read."""
    assert hosts == hosts_of(url)


def by_tcp(url: str, *ports: int) -> str:
    """``url`` on these ports of the loopback address."""
    parts = urlsplit(url)
    return f"postgresql://postgres@{','.join(f'127.0.0.1:{port}' for port in ports)}{parts.path}?sslmode=disable"


async def test_a_host_that_drops_packets_hides_no_other(postgres: str) -> None:
    """With a first host that never answers, the second is connected to well within the time for one connection."""
    async with tcp_proxy(postgres) as gone, tcp_proxy(postgres) as there:
        await gone.black_hole()
        connector = Connector(by_tcp(postgres, gone.port, there.port))
        began = time.monotonic()
        connection = await connector.connect(timeout=Bounds.connect)
        assert time.monotonic() - began < 2
        assert 1 == await connection.fetchval("SELECT 1")
        connector.terminate_all()
        with pytest.raises(asyncpg.InterfaceError):
            await connection.fetchval("SELECT 1")


async def test_an_attempt_can_be_ended(postgres: str) -> None:
    """Ending all connections ends also the attempts to make one, which would wait for seconds."""
    async with tcp_proxy(postgres) as proxy:
        await proxy.black_hole()
        connector = Connector(by_tcp(postgres, proxy.port))
        attempt = asyncio.ensure_future(connector.connect(timeout=Bounds.connect))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        connector.terminate_all()
        with pytest.raises(TimeoutError):
            await attempt
        assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://one,two/name?port=1,2,3", "hosts and ports do not match"),
        ("postgresql://one/name?sslmode=verify-full&sslrootcert=/nowhere/root.crt", "sslrootcert .* /nowhere/root.crt"),
        ("postgresql://one/name?sslmode=sometimes", "ClientConfigurationError"),
    ],
)
async def test_a_url_that_cannot_be_used_is_told(url: str, told: str) -> None:
    """What is wrong with a URL does not pass by waiting, so it is an error of the configuration."""
    with pytest.raises(DatabaseConfigError, match=told):
        async with direct_connection(url):
            pass
    if "sometimes" not in url:  # asyncpg reads that when it connects
        with pytest.raises(DatabaseConfigError, match=told):
            async with open_database(url, 1, Bounds()):
                pass


@pytest.mark.parametrize(
    ("answer", "reason"), [(b"HTTP/1.1 400 Bad Request\r\n\r\n", "not_postgresql"), (None, "no_answer")]
)
async def test_what_is_no_postgresql_is_told_apart(answer: bytes | None, reason: str) -> None:
    """A server of another kind, and one that says nothing, are told apart from one that refuses."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if answer:
            writer.write(answer)
        else:
            await asyncio.sleep(1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"postgresql://u:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}/db"
    async with server:
        with pytest.raises(DatabaseUnreachable, match=reason) as caught:
            async with direct_connection(url, seconds=0.3):
                pass
    assert "secret" not in str(caught.value)


async def test_an_unknown_name_is_told_apart() -> None:
    """A name that cannot be resolved is told with the resolver's code."""
    with pytest.raises(DatabaseUnreachable, match=r"dns \(gaierror, EAI_"):
        async with direct_connection("postgresql://u@no-such-host.invalid/db"):
            pass


async def test_a_demoted_primary_is_left_for_the_new_one(postgres: str, template: str) -> None:
    """When the primary turns read-only and another takes over, calls go there without one that fails."""
    folder = data_folder()
    async with fresh_database(postgres, template) as new, run_embedded(folder / "data") as old:
        await execute(old.url, f'CREATE DATABASE "{urlsplit(new).path[1:]}"')
        sockets = [parse_qs(urlsplit(url).query)["host"][0] for url in (old.url, new)]
        await migrate(new.replace(sockets[1], sockets[0]))
        async with running_service(new.replace(sockets[1], ",".join(sockets))) as service:
            made = await service.stub.CreateConversation(create())
            await execute(old.url, "ALTER SYSTEM SET default_transaction_read_only = on")
            await execute(old.url, "SELECT pg_reload_conf()")
            await asyncio.sleep(0.2)
            again = await service.stub.CreateConversation(create())
            assert again.id == (await service.stub.GetConversation(get(again.id))).id
            with pytest.raises(Exception, match="not found"):  # it is another server
                await service.stub.GetConversation(get(made.id))
