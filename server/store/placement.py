"""Where each table lies when the database is distributed by Citus, and how it gets there.

A table whose primary key has a conversation is distributed by it, beside the conversations; every other one is small
and has a copy on each node.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import asyncpg

from server.store.connection.layout import DISTRIBUTED, find_layout
from server.store.connection.nodes import ROLE_SETTINGS, Node, read_nodes, session_problems
from server.store.sql.schema import conversations, metadata
from server.store.sql.shard_functions import CREATE_ROW, FUNCTIONS, ROW

SHARDS = 32  # by default
_NO_LIMIT = 7 * 24 * 3600.0  # seconds; filled tables take their time

# Of revision 0010, which keep the order by activity. Citus takes no triggers, and there is no such order.
_TRIGGERS = ("keep_activity_of_new", "keep_activity", "keep_activity_of_old")
_TABLES = (conversations.name, *sorted(metadata.tables), "alembic_version")  # the first one is there before the others
_PLACED = "SELECT logicalrelid::text FROM pg_catalog.pg_dist_partition"
_FUNCTIONS = """
    SELECT proname FROM pg_catalog.pg_dist_object JOIN pg_proc ON pg_proc.oid = objid
    WHERE classid = 'pg_proc'::regclass"""


@dataclass(frozen=True)
class Plan:
    """What is missing.

    Attributes:
        distributed: Tables to distribute, the conversations first.
        copied: Tables to copy to each node.
        functions: Functions to distribute.
        sets_role: Whether the role lacks settings at a node.
    """

    distributed: tuple[str, ...]
    copied: tuple[str, ...]
    functions: tuple[str, ...]
    sets_role: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing is."""
        return not (self.distributed or self.copied or self.functions or self.sets_role)

    def lines(self) -> Iterator[str]:
        """Yields it for people, a line each."""
        for name in self.distributed:
            yield f"{name}: is distributed by {distribution_column(name)}"
        for name in self.copied:
            yield f"{name}: is copied to each node"
        for name in self.functions:
            yield f"function {name}: is distributed"
        if self.sets_role:
            yield f"role: has {', '.join(f'{name} = {value}' for name, value in ROLE_SETTINGS.items())}"


def distribution_column(table: str) -> str | None:
    """Returns the column that a table is distributed by; None for a table that each node has a copy of."""
    if table == conversations.name:
        return "id"
    found = metadata.tables.get(table)
    return "conversation_id" if found is not None and "conversation_id" in found.primary_key.columns else None


async def find_missing(connection: asyncpg.Connection, nodes: Iterable[Node]) -> Plan:
    """Returns what a database with the extension lacks to be distributed.

    Args:
        connection: To the coordinator.
        nodes: Whose settings are looked at.
    """
    placed = {row["logicalrelid"] for row in await connection.fetch(_PLACED)}
    tables = [name for name in dict.fromkeys(_TABLES) if name not in placed]
    functions = {row["proname"] for row in await connection.fetch(_FUNCTIONS)}
    return Plan(
        distributed=tuple(name for name in tables if distribution_column(name)),
        copied=tuple(name for name in tables if not distribution_column(name)),
        functions=tuple(each.name for each in FUNCTIONS if each.name not in functions),
        sets_role=any(session_problems(nodes)),
    )


async def place(connection: asyncpg.Connection, plan: Plan, shards: int = SHARDS) -> None:
    """Carries out ``plan`` in one transaction; the rows that are there already go along.

    Args:
        connection: To the coordinator.
        plan: Of `find_missing`.
        shards: Into how many parts each table is divided, if the conversations are not yet.
    """
    async with connection.transaction():
        # One shard after the other: only then can the same transaction distribute what comes behind it.
        await connection.execute("SET LOCAL citus.multi_shard_modify_mode TO 'sequential'")
        # A trigger of ours writes beside its row: what belongs to one conversation.
        await connection.execute("SET LOCAL citus.enable_unsafe_triggers TO on")
        for name in plan.copied:
            await connection.execute(f"SELECT create_reference_table('{name}')", timeout=_NO_LIMIT)
        for name in _TRIGGERS if conversations.name in plan.distributed else ():
            await connection.execute(f"DROP TRIGGER IF EXISTS {name} ON conversations")
        for name in plan.distributed:
            await connection.execute(_distribution_of(name, shards), timeout=_NO_LIMIT)
        if plan.functions:
            await _make_functions(connection)
        for name, value in ROLE_SETTINGS.items() if plan.sets_role else ():
            await connection.execute(f"ALTER ROLE CURRENT_USER SET {name} = '{value}'")
    for name in (*plan.copied, *plan.distributed):
        text = f"SELECT truncate_local_data_after_distributing_table('{name}')"
        await connection.execute(text, timeout=_NO_LIMIT)


async def _make_functions(connection: asyncpg.Connection) -> None:
    await connection.execute(f"DROP TYPE IF EXISTS {ROW} CASCADE")  # what an older one has left in part
    await connection.execute(CREATE_ROW)
    for function in FUNCTIONS:
        await connection.execute(function.create)
        await connection.execute(function.distribute)


async def place_new_tables(connection: asyncpg.Connection) -> None:
    """Places the tables that a migration has added, if the database is distributed."""
    if await find_layout(connection) is DISTRIBUTED:
        await place(connection, await find_missing(connection, await read_nodes(connection)))


def _distribution_of(name: str, shards: int) -> str:
    beside = f"shard_count := {shards}" if name == conversations.name else "colocate_with := 'conversations'"
    return f"SELECT create_distributed_table('{name}', '{distribution_column(name)}', {beside})"
