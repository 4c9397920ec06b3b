"""A write to one conversation as one command to the worker that has it (docs/adr/0040).

Citus would spread a statement that writes several tables over all workers, or refuse it. So the coordinator is asked
for a function that is distributed as the conversations are: it forwards the call as a whole, and at the worker the
function runs the statement on the tables that hold this conversation. The statement is the one that a single server
runs, its conditions included, and its commit is local.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from typing import Any

from server.store.sql.schema import metadata
from server.store.sql.statement import Statement
from server.store.sql.text_values import as_text

# Numbered, so that versions beside each other each have their own.
FUNCTION = "write_conversation_1"
ROW = "written_row_1"

ARGUMENTS = "text, text[], text, text[], bytea[], boolean"
# SQLSTATE of a call that the coordinator has run itself. It does so when a session has planned a statement that Citus
# refuses: from then on it forwards nothing. A new session does.
NOT_FORWARDED = "CV001"

# All that such a statement may return.
COLUMNS = {
    "id": "text",
    "conversation_id": "text",
    "owner": "text",
    "attributes": "text[]",
    "metadata": "jsonb",
    "last_sequence": "bigint",
    "revision": "bigint",
    "create_time": "timestamptz",
    "update_time": "timestamptz",
    "active_time": "timestamptz",
    "expire_time": "timestamptz",
    "idle_ttl": "interval",
    "forked_from": "text",
    "forked_sequence": "bigint",
    "number": "bigint",
    "base": "bigint",
    "stored_sequence": "bigint",
    "item_count": "bigint",
    "digest": "bytea",
    "count": "bigint",
    "is_own": "boolean",
    "sequence": "bigint",
    "removed": "bigint",
    "found": "bigint",
    "seen": "bigint",
    "marked": "bigint",
    "skipped": "bigint",
    "tenant": "text",
}
CREATE_ROW = f"CREATE TYPE {ROW} AS ({', '.join(f'{name} {type_}' for name, type_ in COLUMNS.items())})"
# A lock in the mode SHARE (5) keeps Citus from moving the shard meanwhile; every write that Citus plans takes it too.
# Whoever has waited for a move finds the shard at another node, and tries again.
CREATE_FUNCTION = f"""
    CREATE OR REPLACE FUNCTION {FUNCTION}(
        conversation text, tables text[], statement text, texts text[], bodies bytea[], counts boolean
    ) RETURNS SETOF {ROW} LANGUAGE plpgsql AS $function$
    DECLARE
        shard bigint := get_shard_id_for_distribution_column('conversations', conversation);
        name text;
        written record;
        result {ROW};
    BEGIN
        IF (SELECT groupid FROM pg_catalog.pg_dist_local_group) = 0 THEN
            RAISE 'the call was not forwarded' USING ERRCODE = '{NOT_FORWARDED}';
        END IF;
        PERFORM lock_shard_metadata(5, ARRAY[shard]);
        PERFORM FROM pg_catalog.pg_dist_placement JOIN pg_catalog.pg_dist_local_group USING (groupid)
            WHERE shardid = shard;
        IF NOT FOUND THEN
            RAISE 'the conversation is at another node' USING ERRCODE = 'serialization_failure';
        END IF;
        FOREACH name IN ARRAY tables LOOP
            statement := replace(statement, '{{' || name || '}}',
                quote_ident(name || '_' || get_shard_id_for_distribution_column(name::regclass, conversation)));
        END LOOP;
        IF counts THEN
            EXECUTE statement USING texts, bodies;
            GET DIAGNOSTICS result.count = ROW_COUNT;
            RETURN NEXT result;
            RETURN;
        END IF;
        FOR written IN EXECUTE statement USING texts, bodies LOOP
            RETURN NEXT jsonb_populate_record(NULL::{ROW}, to_jsonb(written));
        END LOOP;
    END $function$"""  # noqa: S608 - our own text

_CONVERSATION = ("conversation_id", "groups_conversation_id")  # parameters that name it; the second is an array
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
    """The call of the function, in place of a statement that writes to one conversation.

    Attributes:
        tables: That it reads and writes.
        body: Its text, with a placeholder for each table and parameters as elements of two arrays.
        conversation: The parameter that names it.
        bodies: The parameter with the bodies of items, '' if there is none.
    """

    tables: tuple[str, ...] = ()
    body: str = ""
    conversation: str = ""
    bodies: str = ""

    def arguments(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Those of the function; ``values`` as of `Statement.arguments`."""
        named = values[self.conversation]
        conversation = named if isinstance(named, str) else named[0]
        texts = [None if name == self.bodies else as_text(values[name]) for name in self.names]
        return (conversation, self.tables, self.body, texts, values[self.bodies] if self.bodies else ())


@lru_cache(maxsize=2048)
def route(statement: Statement) -> Statement:
    """Returns ``statement`` as a call of the function if it writes to one conversation, otherwise itself."""
    conversation = next((name for name in _CONVERSATION if name in statement.names), "")
    if statement.kind == "read" or not conversation or _SOURCE in statement.names:
        return statement
    bodies = next((name for name in _BODIES if name in statement.names), "")
    body, tables = _on_shards(statement.text)
    columns = ", ".join(f'"{name}"' for name in statement.columns)
    return RoutedStatement(
        f"SELECT {columns} FROM {FUNCTION}($1, $2, $3, $4, $5, false)",  # noqa: S608 - our own text
        statement.names,
        statement.kind,
        statement.waits,
        statement.columns,
        tables,
        _with_elements(body, statement.names.index(bodies) + 1 if bodies else 0),
        conversation,
        bodies,
    )


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
