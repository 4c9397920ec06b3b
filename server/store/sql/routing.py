"""A statement on one conversation as one command to the worker that has it (docs/adr/0040, 0041).

Citus would spread a statement that writes several tables over all workers, or refuse it, and plans each read of items
anew. So the coordinator is asked for a function that is distributed as the conversations are: it forwards the call as a
whole, and at the worker the function runs the statement on the tables that hold this conversation. The statement is the
one that a single server runs, its conditions included, and its commit is local.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

from server.store.sql.schema import conversations, items, metadata
from server.store.sql.shard_functions import COLUMNS, LIST, READ, READ_COLUMNS, WRITE
from server.store.sql.statement import Statement
from server.store.sql.text_values import as_text

# Parameters that name it; those of statements that may concern several are arrays.
_CONVERSATION = ("conversation_id", "groups_conversation_id", "creates_conversation_id")
_SOURCE = "source_id"  # of another conversation, which may be elsewhere
_BODIES = ("bodies", "items_body")  # the parameter that is large, and no text
# Where a table is named, and not a column: the last in a list of them ends its line.
_TABLE = re.compile(
    rf"(\b(?:UPDATE|INTO|FROM|JOIN)\s+|,\s+(?=\w+\s*\n))({'|'.join(metadata.tables)})\b(?!\.)(\s+AS\s+\w+)?"
)
_PARAMETER = re.compile(r"\$(\d+)::((?:TIMESTAMP WITH TIME ZONE|[A-Z]+)(?:\[\])?)")


_OWN_PARAMETER = re.compile(r"\$(\d+)(::[a-z]+(?:\[\])?)?")
_TYPES = ((str, "text"), (int, "bigint"), (timedelta, "interval"), (date, "timestamptz"), (Sequence, "text[]"))


@dataclass(frozen=True, slots=True)
class RoutedStatement(Statement):
    """The call of a function, in place of a statement on one conversation.

    Attributes:
        tables: That it reads and writes.
        body: Its text, with a placeholder for each table and parameters as elements of arrays.
        conversation: The parameter that names it.
        bodies: The parameter with the bodies of items, '' if there is none.
    """

    tables: tuple[str, ...] = ()
    body: str = ""
    conversation: str = ""
    bodies: str = ""

    @property
    def own_text(self) -> str:
        """As of `Statement`."""
        return self.body

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Those of the function; ``values`` as of `Statement.arguments`."""
        named = values[self.conversation]
        conversation = named if isinstance(named, str) else named[0]
        texts = [None if name == self.bodies else as_text(values[name]) for name in self.names]
        arguments = (conversation, self.tables, self.body, texts)
        if self.kind == "read":
            return arguments
        return (*arguments, values[self.bodies] if self.bodies else ())


@lru_cache(maxsize=2048)
def route(statement: Statement) -> Statement:
    """Returns ``statement`` as a call of a function if it writes to one conversation, or reads its items.

    Otherwise itself: what Citus plans in a moment, or what concerns several conversations.
    """
    conversation = next((name for name in _CONVERSATION if name in statement.names), "")
    if not conversation or _SOURCE in statement.names:
        return statement
    bodies = next((name for name in _BODIES if name in statement.names), "")
    body, tables = _on_shards(statement.text)
    if statement.kind == "read" and not _reads_items(statement, tables):
        return statement
    return RoutedStatement(
        _call_of_read(statement) if statement.kind == "read" else _call_of_write(statement),
        statement.names,
        statement.kind,
        statement.waits,
        statement.columns,
        tables,
        _with_elements(body, statement.names.index(bodies) + 1 if bodies else 0),
        conversation,
        bodies,
    )


@dataclass(frozen=True, slots=True)
class ListStatement(Statement):
    """The call of a function for the conversations of one worker, in place of a statement on all.

    Its values have ``worker_key``, which stands for a conversation there, and ``worker_shards``.

    Attributes:
        body: Its text, with a placeholder for the table and parameters as elements of an array.
    """

    body: str = ""

    @property
    def own_text(self) -> str:
        """As of `Statement`."""
        return self.body

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Those of the function; ``values`` as of `Statement.arguments`."""
        texts = [as_text(values[name]) for name in self.names]
        return (values["worker_key"], values["worker_shards"], self.body, texts)


@lru_cache(maxsize=512)
def route_list(statement: Statement) -> Statement:
    """Returns ``statement`` as a call for one worker if it reads conversations and no other table, otherwise itself."""
    body, tables = _on_shards(statement.text)
    if tables != (conversations.name,) or not COLUMNS.keys() >= set(statement.columns):
        return statement
    columns = ", ".join(f"{name} {COLUMNS[name]}" for name in statement.columns)
    text = f"SELECT * FROM {LIST}($1, $2, $3, $4) AS page({columns})"  # noqa: S608 - our own text
    return ListStatement(
        text, statement.names, statement.kind, statement.waits, statement.columns, _with_elements(body, 0)
    )


def _reads_items(statement: Statement, tables: Sequence[str]) -> bool:
    """Whether it reads items, and the types of all its columns are known."""
    return items.name in tables and bool(statement.columns) and READ_COLUMNS.keys() >= set(statement.columns)


def _call_of_read(statement: Statement) -> str:
    columns = ", ".join(f"{name} {READ_COLUMNS[name]}" for name in statement.columns)
    return f"SELECT * FROM {READ}($1, $2, $3, $4) AS read({columns})"  # noqa: S608 - our own text


def _call_of_write(statement: Statement) -> str:
    columns = ", ".join(f'"{name}"' for name in statement.columns)
    return f"SELECT {columns} FROM {WRITE}($1, $2, $3, $4, $5, false)"  # noqa: S608 - our own text


def _on_shards(text: str) -> tuple[str, tuple[str, ...]]:
    """``text`` with a placeholder for each table, which keeps its name as an alias; and the tables."""
    tables = dict.fromkeys(found[2] for found in _TABLE.finditer(text))

    def placeholder(found: re.Match[str]) -> str:
        return f"{found[1]}{{{found[2]}}}{found[3] or f' AS {found[2]}'}"

    return _TABLE.sub(placeholder, text), tuple(tables)


def _with_elements(text: str, bodies: int) -> str:
    """``text`` with element n of the array of texts in place of parameter n; that of ``bodies`` is an array itself."""

    def element(found: re.Match[str]) -> str:
        return "$2" if int(found[1]) == bodies else f"($1[{found[1]}])::{found[2]}"

    return _PARAMETER.sub(element, text)


def shard_statement(text: str, arguments: Sequence[Any]) -> tuple[str, tuple[str, ...], list[str | None]]:
    """Returns SQL of our own for the tables of one shard: its text, its tables, and its arguments as texts."""
    body, tables = _on_shards(text)

    def element(found: re.Match[str]) -> str:
        number = int(found[1])
        return f"($1[{number}]){found[2] or f'::{_type_of(arguments[number - 1])}'}"

    return _OWN_PARAMETER.sub(element, body), tables, [as_text(value) for value in arguments]


def _type_of(value: Any) -> str:
    return next(name for type_, name in _TYPES if isinstance(value, type_))
