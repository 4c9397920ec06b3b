"""Distributed databases for tests, on the cluster of `CITUS_URL`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import asyncpg

from server.store.connection.nodes import read_nodes
from server.store.distribution import distribute
from server.store.migrate import migrate
from server.store.placement import Plan, find_missing
from tests.support.postgres import execute, execute_everywhere, node_urls, with_database
from tests.support.shards import connected

SHARDS = 8
_LOCK = 40  # advisory, at the coordinator


async def make_distributed_template(postgres: str, name: str) -> None:
    """Makes a migrated and distributed database on each node, for others to be copied from."""
    await make_distributed_database(postgres, name)
    for url in await node_urls(postgres):
        await execute(url, f'ALTER DATABASE "{name}" WITH ALLOW_CONNECTIONS false')
        await execute(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")


async def make_distributed_database(postgres: str, name: str, shards: int = SHARDS) -> None:
    """Makes a migrated and distributed database on each node."""
    async with _alone(postgres):
        url = await make_joined_database(postgres, name)
        await migrate(url)
        await distribute(url, shards)


@asynccontextmanager
async def _alone(postgres: str) -> AsyncIterator[None]:
    """Keeps other processes of tests waiting: the first database gives the role its settings, at all nodes."""
    connection = await asyncpg.connect(postgres, server_settings={"lock_timeout": "0"})  # the role has one
    try:
        await connection.execute(f"SELECT pg_advisory_lock({_LOCK})")
        yield
    finally:
        await connection.close()


async def make_joined_database(postgres: str, name: str) -> str:
    """Makes an empty database on each node, all of which know each other; returns the address at the coordinator."""
    await execute_everywhere(postgres, f'CREATE DATABASE "{name}"')
    coordinator, *workers = [with_database(url, name) for url in await node_urls(postgres)]
    for url in (coordinator, *workers):
        await execute(url, "CREATE EXTENSION citus")
    here = urlsplit(coordinator)
    await execute(coordinator, f"SELECT citus_set_coordinator_host('{here.hostname}', {here.port})")
    for worker in map(urlsplit, workers):
        await _join(coordinator, f"SELECT citus_add_node('{worker.hostname}', {worker.port})")
    return coordinator


async def _join(coordinator: str, statement: str) -> None:
    """Runs it again while another test has its database joined: both give the role to the worker."""
    for _ in range(10):
        with suppress(asyncpg.InternalServerError):
            await execute(coordinator, statement)
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the worker does not join")


async def missing(url: str) -> Plan:
    """What a database lacks to be distributed."""
    async with connected(url) as connection:
        return await find_missing(connection, await read_nodes(connection))
