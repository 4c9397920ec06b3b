"""Distributes a database over the workers of Citus."""

from collections.abc import Sequence

import asyncpg

from server.errors import OperatorError
from server.store.connection.nodes import Node, node_problems, read_nodes
from server.store.connection.opening import direct_connection
from server.store.migrate import migration_lock, require_schema
from server.store.placement import Plan, find_missing, place
from server.store.sql.schema import conversations

MINIMUM_VERSION = 16  # of PostgreSQL, the oldest for which a Citus is maintained
_SESSION = {"application_name": "conversations distribute"}
_HAS_CITUS = "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')"
_HAS_COORDINATOR = "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE groupid = 0)"
_IS_WORKER = "SELECT groupid > 0 FROM pg_catalog.pg_dist_local_group"
_HAS_WORKER = "SELECT EXISTS (SELECT FROM pg_catalog.pg_dist_node WHERE groupid > 0 AND isactive AND shouldhaveshards)"
_COUNT_SESSIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'conversations' AND pid <> pg_backend_pid()"""


class DistributeRefused(OperatorError):
    """The tables cannot be distributed; the text is for the operator and says why."""


async def plan_distribution(url: str) -> Plan:
    """Returns what `distribute` would do; raises as it does."""
    await require_schema(url)
    async with direct_connection(url, settings=_SESSION) as connection:
        return await _plan(connection)


async def distribute(url: str, shards: int) -> Plan:
    """Distributes the tables that are not yet; returns what was done.

    Args:
        url: Of the coordinator.
        shards: Into how many parts each table is divided, if it is not yet.

    Raises:
        SchemaTooOld: As `require_schema`.
        DistributeRefused: Something that it needs is missing, a node is set wrongly, or the service is running.
        MigrationFailed: A migration is running.
        DatabaseConfigError, DatabaseUnreachable: As `direct_connection`.
    """
    await require_schema(url)
    async with migration_lock(url), direct_connection(url, settings=_SESSION) as connection:
        plan = await _plan(connection)
        if not plan.is_empty:
            await _carry_out(connection, plan, shards)
        return plan


async def _plan(connection: asyncpg.Connection) -> Plan:
    if reason := await _find_obstacle(connection):
        raise DistributeRefused(reason)
    nodes = await read_nodes(connection)
    if reason := _find_wrong_node(nodes):
        raise DistributeRefused(reason)
    plan = await find_missing(connection, nodes)
    if conversations.name in plan.distributed and (count := await connection.fetchval(_COUNT_SESSIONS)):
        raise DistributeRefused(f"The service has {count} connections to this database: stop it first.")
    return plan


async def _find_obstacle(connection: asyncpg.Connection) -> str:
    """Returns why this database cannot be distributed, '' if it can."""
    version = connection.get_server_version().major
    if version < MINIMUM_VERSION:
        return f"PostgreSQL {version} is too old to be distributed: 16 is the oldest."
    if not await connection.fetchval(_HAS_CITUS):
        return "This database lacks the extension: CREATE EXTENSION citus, here and on each worker."
    if await connection.fetchval(_IS_WORKER):
        return "This is a worker: give the URL of the coordinator."
    if not await connection.fetchval(_HAS_COORDINATOR):
        return "The coordinator has no address for the workers: SELECT citus_set_coordinator_host('its host')."
    if not await connection.fetchval(_HAS_WORKER):
        return "This database has no workers: SELECT citus_add_node('host', 5432) for each."
    if await connection.fetchval("SELECT is_on FROM change_log"):
        return "Changes are kept, which a distributed database cannot do: python -m server changes off."
    return ""


def _find_wrong_node(nodes: Sequence[Node]) -> str:
    """Returns which node is set in a way that would lose writes or could not move them, '' if none is."""
    if still := [node.name for node in nodes if node.settings["wal_level"] != "logical"]:
        return f"wal_level is not logical on {', '.join(still)}: shards could not move while they are written to."
    if problems := [*node_problems(nodes, unsafe_durability=False)]:
        return f"Nodes are set wrongly: {'; '.join(problems)}."
    return ""


async def _carry_out(connection: asyncpg.Connection, plan: Plan, shards: int) -> None:
    try:
        await place(connection, plan, shards)
    except asyncpg.PostgresError as error:
        raise DistributeRefused(f"Citus refused it: {type(error).__name__} (SQLSTATE {error.sqlstate}).") from error
