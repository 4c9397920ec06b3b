"""A role without any right but its own database, on each node of Citus; on a cluster of its own."""

import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest

from server.store.connection.opening import DatabaseConfigError
from server.store.distribution import distribute, plan_distribution
from server.store.migrate import migrate
from server.store.placement import place_new_tables
from server.store.purge import purge
from tests.support.build import append, create, delete, list_items, user_message
from tests.support.citus import Cluster, Node, running_cluster
from tests.support.citus_faults import BIN, NEEDS_CITUS
from tests.support.distributed import missing
from tests.support.ports import HOST
from tests.support.postgres import execute, fetch
from tests.support.service import running_service
from tests.support.shards import connected

pytestmark = NEEDS_CITUS
ROLE = "conversations"
PASSWORD = uuid4().hex
HBA = f"host all postgres {HOST}/32 trust\nhost all all {HOST}/32 scram-sha-256\n"


@pytest.fixture(scope="module")
async def cluster() -> AsyncIterator[Cluster]:
    """A coordinator and two workers; the role owns a database of each, and no more."""
    async with running_cluster(Path(os.environ[BIN])) as running:
        await execute(running.url, f"CREATE ROLE {ROLE} LOGIN PASSWORD '{PASSWORD}'")  # Citus makes it at the workers
        for node in running.nodes:
            await prepare(node)
        coordinator = running.nodes[0]
        await execute(
            url_of(coordinator, "postgres"), f"SELECT citus_set_coordinator_host('{HOST}', {coordinator.port})"
        )
        for worker in running.workers:
            await join(coordinator, worker)
        yield running


async def prepare(node: Node) -> None:
    """Gives the role its database there, and other nodes its password, without which it cannot log in."""
    await execute(node.url, f"CREATE DATABASE {ROLE} OWNER {ROLE}")
    superuser = url_of(node, "postgres")
    await execute(superuser, "CREATE EXTENSION citus")
    await execute(superuser, f"INSERT INTO pg_dist_authinfo VALUES (0, '{ROLE}', 'password={PASSWORD}')")
    (node.folder / "pg_hba.conf").write_text(HBA, encoding="utf-8")
    await execute(superuser, "SELECT pg_reload_conf()")


async def join(coordinator: Node, worker: Node) -> None:
    """Makes a worker known to the coordinator."""
    await execute(url_of(coordinator, "postgres"), f"SELECT citus_add_node('{HOST}', {worker.port})")


def url_of(node: Node, role: str = ROLE) -> str:
    """The role's database there."""
    return f"postgresql://{role}:{PASSWORD}@{HOST}:{node.port}/{ROLE}"


async def test_a_plain_role(cluster: Cluster) -> None:
    """It migrates, distributes, serves, purges, and places the tables of a later migration."""
    url = url_of(cluster.nodes[0])
    assert [(False,)] == await fetch(url, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    await migrate(url)
    assert await plan_distribution(url) == await distribute(url, 4)
    async with running_service(url) as service:
        conversation_id = (await service.stub.CreateConversation(create(user_message("a")))).id
        await service.stub.CreateItems(append(conversation_id, user_message("b")))
        assert 2 == len((await service.stub.ListItems(list_items(conversation_id))).items)
        await service.stub.DeleteConversation(delete(conversation_id))
    await execute(url, "UPDATE conversations SET delete_time = timestamptz '2020-01-01' WHERE delete_time IS NOT NULL")
    purged = await purge(url, timedelta(days=30))
    assert purged is not None
    assert 1 == purged.conversations
    await execute(url, "SELECT undistribute_table('erasures')")
    async with connected(url) as connection:
        await place_new_tables(connection)
    assert (await missing(url)).is_empty


async def test_a_worker_that_lacks_the_settings_of_the_role(cluster: Cluster) -> None:
    """The start names it, and `distribute` gives it to the worker."""
    url, worker = url_of(cluster.nodes[0]), cluster.workers[1]
    await migrate(url)
    await distribute(url, 4)
    at_worker = await asyncpg.connect(worker.url)
    await at_worker.execute("SET citus.enable_ddl_propagation = off")
    await at_worker.execute(f"ALTER ROLE {ROLE} RESET enable_seqscan")
    await at_worker.close()
    with pytest.raises(DatabaseConfigError, match=f"sessions at {HOST}:{worker.port} have enable_seqscan = on and not"):
        async with running_service(url):
            pass
    assert (await plan_distribution(url)).sets_role
    await distribute(url, 4)
    async with running_service(url) as service:
        await service.stub.CreateConversation(create(user_message("a")))


async def test_a_worker_that_joins(cluster: Cluster) -> None:
    """Citus gives it the role, with its settings."""
    url = url_of(cluster.nodes[0])
    await migrate(url)
    await distribute(url, 4)
    node = await cluster.add_worker()
    await prepare(node)
    await join(cluster.nodes[0], node)
    assert (await plan_distribution(url)).is_empty
    async with running_service(url) as service:
        await service.stub.CreateConversation(create(user_message("a")))
