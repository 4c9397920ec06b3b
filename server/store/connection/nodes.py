"""The nodes of a distributed database, and whether each is set as the service needs it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.store.connection.bounds import Bounds

if TYPE_CHECKING:
    import asyncpg


# Sessions at the workers are made by Citus, with the settings of the role; as pg_settings shows them.
ROLE_SETTINGS = {
    name: value
    for name, value in Bounds().session().items()
    if name in {"jit", "enable_seqscan", "enable_bitmapscan", "lock_timeout"}
}
_READ = """
    SELECT nodename || ':' || nodeport AS name, success, result
    FROM run_command_on_all_nodes($1) JOIN pg_catalog.pg_dist_node USING (nodeid) ORDER BY groupid"""
# A node that does not answer at all is left out before statement_timeout ends the question.
_GIVE_UP = "SET LOCAL citus.node_connection_timeout = 1000"
_DURABLE = ("fsync", "synchronous_commit")
_ASKED = (*_DURABLE, "wal_level", "max_prepared_transactions", *ROLE_SETTINGS)
# All that is asked of a node, as one row of JSON.
_SETTINGS = f"""
    SELECT json_object_agg(name, setting) FROM pg_settings
    WHERE name IN ({", ".join(f"'{name}'" for name in _ASKED)})"""  # noqa: S608 - our own names


@dataclass(frozen=True)
class Node:
    """A server of Citus.

    Attributes:
        name: Host and port.
        settings: Those that matter, as pg_settings shows them; empty when it cannot be asked.
    """

    name: str
    settings: Mapping[str, str]


async def read_nodes(connection: "asyncpg.Connection") -> list[Node]:
    """Returns the nodes that answer, the coordinator first.

    Raises:
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError: The coordinator cannot be asked.
    """
    async with connection.transaction():
        await connection.execute(_GIVE_UP)
        rows = await connection.fetch(_READ, _SETTINGS)
    return [Node(row["name"], json.loads(row["result"])) for row in rows if row["success"]]


def node_problems(nodes: Iterable[Node], *, unsafe_durability: bool) -> Iterator[str]:
    """Yields what is wrong with the settings of which node.

    A node that is down is left out: it is no reason not to serve the conversations of the others.
    """
    for node in nodes:
        for name in () if unsafe_durability else _DURABLE:
            if node.settings[name] == "off":
                yield f"{name} is off on {node.name}, where a crash would lose acknowledged writes"
        if node.settings["max_prepared_transactions"] == "0":
            yield f"max_prepared_transactions is 0 on {node.name}, which cannot write with another node then"


def session_problems(nodes: Iterable[Node]) -> Iterator[str]:
    """Yields which settings the sessions of which node lack, as those of one that was added later may."""
    for node in nodes:
        for name, wanted in ROLE_SETTINGS.items():
            if (value := node.settings[name]) != wanted:
                yield f"sessions at {node.name} have {name} = {value} and not {wanted}, which distribute sets"
