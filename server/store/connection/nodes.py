"""The nodes of a distributed database, and whether each is set as the service needs it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncpg


_READ = """
    SELECT nodename || ':' || nodeport AS name, success, result
    FROM run_command_on_all_nodes($1) JOIN pg_catalog.pg_dist_node USING (nodeid) ORDER BY groupid"""
# All that is asked of a node, as one row of JSON.
_SETTINGS = """
    SELECT json_object_agg(name, setting) FROM pg_settings WHERE name IN (
        'fsync', 'synchronous_commit', 'wal_level', 'max_prepared_transactions',
        'enable_seqscan', 'enable_bitmapscan', 'jit', 'lock_timeout')"""
_DURABLE = ("fsync", "synchronous_commit")


@dataclass(frozen=True)
class Node:
    """A server of Citus.

    Attributes:
        name: Host and port.
        settings: Those that matter, as pg_settings shows them; empty when it cannot be asked.
    """

    name: str
    settings: Mapping[str, str]


async def read_nodes(connection: "asyncpg.Connection | asyncpg.Pool") -> list[Node]:
    """Returns the nodes that answer, the coordinator first.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: The coordinator cannot be asked.
    """
    rows = await connection.fetch(_READ, _SETTINGS)
    return [Node(row["name"], json.loads(row["result"])) for row in rows if row["success"]]


async def node_problems(connection: "asyncpg.Connection | asyncpg.Pool", *, unsafe_durability: bool) -> str:
    """Returns what is wrong with the settings of which node, '' if nothing is.

    A node that is down is left out: it is no reason not to serve the conversations of the others.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: As `read_nodes`.
    """
    nodes = await read_nodes(connection)
    return "; ".join(text for node in nodes for text in _problems(node, unsafe=unsafe_durability))


def _problems(node: Node, *, unsafe: bool) -> Iterator[str]:
    for name in () if unsafe else _DURABLE:
        if node.settings[name] == "off":
            yield f"{name} is off on {node.name}, where a crash would lose acknowledged writes"
    if node.settings["max_prepared_transactions"] == "0":
        yield f"max_prepared_transactions is 0 on {node.name}, which cannot write with another node then"
