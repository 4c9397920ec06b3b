"""Writes as calls of the function that is forwarded to the worker of their conversation."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from server.authorization.permission import Permission
from server.policy.plan import Always
from server.store.comparison import EARLIEST
from server.store.expiry import NEVER_TIME
from server.store.idempotency import Method
from server.store.sql import appends, conversations, creates, forks, imports, items, rewinds
from server.store.sql.routing import ListStatement, RoutedStatement, route, route_list, shard_statement
from server.store.sql.schema import metadata
from server.store.sql.shard_functions import COLUMNS
from server.store.sql.statement import Statement
from server.store.sql.text_values import as_text

READ, WRITE = Permission("conversation", "read", Always()), Permission("item", "create", Always())
WRITES = {
    "append": items.append(READ, WRITE, None, expects=True, queues=False, reserves=True),
    "append of copies": items.append(READ, WRITE, None, expects=True, queues=False, reserves=True, copied=True),
    "append of a group": appends.append_many(READ, WRITE, queues=False, reserves=True, skip_locked=True),
    "create": creates.create(None, attributes=True, items=True, expires=True, reserves=True),
    "update": conversations.change(READ, (WRITE,), attributes=True, expiry=True, queues=False, reserves=True),
    "delete": conversations.delete(READ, WRITE, reserves=True),
    "undelete": conversations.undelete(READ, WRITE, reserves=True),
    "delete of an item": items.delete(READ, WRITE, WRITE, reserves=True),
    "rewind": rewinds.rewind(READ, WRITE, WRITE, expects=True, reserves=True),
    "copy": forks.store_copy(reserves=True),
    "begin of an import": imports.BEGIN,
    "block of an import": imports.STORE,
    "end of an import": imports.FINISH,
}
TABLES = tuple(metadata.tables)


@pytest.mark.parametrize("statement", WRITES.values(), ids=WRITES)
def test_every_table_is_that_of_the_shard(statement: Statement) -> None:
    """No write of one conversation names a table as such: its own text would ask Citus."""
    routed = route(statement)
    assert isinstance(routed, RoutedStatement)
    words = routed.body.replace("(", " ").split()
    named = [words[at + 1] for at, word in enumerate(words[:-1]) if word in {"FROM", "JOIN", "INTO", "UPDATE"}]
    assert [] == [name for name in named if name in TABLES]
    assert set(routed.tables) == {table for table in TABLES if f"{{{table}}}" in routed.body}


@pytest.mark.parametrize("statement", WRITES.values(), ids=WRITES)
def test_every_parameter_is_an_element(statement: Statement) -> None:
    """Of the two arrays that the function gives to the statement, no parameter is left out."""
    routed = route(statement)
    assert isinstance(routed, RoutedStatement)
    at_bodies = statement.names.index(routed.bodies) + 1 if routed.bodies else 0
    for number in range(1, len(statement.names) + 1):
        assert number == at_bodies or f"($1[{number}])::" in routed.body


@pytest.mark.parametrize("statement", WRITES.values(), ids=WRITES)
def test_every_column_is_returned(statement: Statement) -> None:
    """The row that the function returns has all columns of the statement."""
    assert set(statement.columns) <= COLUMNS.keys()


def test_what_is_not_routed() -> None:
    """Reads without items go through Citus, and so does what returns more than the function may."""
    for read in (conversations.get(READ), items.get(READ, READ, WRITE)):
        assert route(read) == read
    fork = forks.fork(forks.Permissions((READ, READ, WRITE, WRITE, WRITE)), "all", reserves=False)
    assert route(fork) is fork


def test_a_read_of_items() -> None:
    """It is a call too, with the types of its columns; values that it has twice are one element."""
    page = {"filtered": False, "by_id": True, "live": True, "descending": True, "small": True}
    routed = route(items.page(READ, READ, **page))
    assert isinstance(routed, RoutedStatement)
    columns = "sequence bigint, body bytea, position bigint"
    assert f"SELECT * FROM read_conversation_1($1, $2, $3, $4) AS read({columns})" == routed.text
    values = {"conversation_id": "conv_1", "tenant": "t", "share": 9, "count": 2, "after": "msg_1"}
    conversation, tables, body, texts = routed.arguments(values)
    assert ("conv_1", {"conversations", "items"}) == (conversation, set(tables))
    assert sorted(values) == sorted(routed.names)
    assert [str(values[name]) for name in routed.names] == texts
    assert "FROM {items} AS cursor" in body


def test_a_list() -> None:
    """It is a call for one worker, unless it reads more than conversations."""
    shape = {"filters_owner": None, "descending": True}
    call = route_list(conversations.page(READ, covered=False, **shape))
    assert isinstance(call, ListStatement)
    assert call.text.startswith("SELECT * FROM list_conversations_1($1, $2, $3, $4) AS page(id text, owner text, ")
    assert 1 == call.body.count("FROM {conversations} AS conversations")
    values = {**dict.fromkeys(call.names, "a"), "worker_key": "7", "worker_shards": (1, 2)}
    assert ("7", (1, 2), call.body, ["a"] * len(call.names)) == call.arguments(values)
    for kind, is_one_table in (("owner", True), ("owners", True), ("ids", True), ("attributes", False)):
        found = conversations.range_page(READ, kind, **shape)
        assert is_one_table == isinstance(route_list(found), ListStatement)


def test_the_arguments() -> None:
    """They are the conversation, its tables, the text, and all values but the bodies as texts."""
    routed = route(imports.RESTART)
    assert isinstance(routed, RoutedStatement)
    values = {"conversation_id": "conv_1", "stream": "s", "head": b"\x01\xff", "digest": b""}
    conversation, tables, _text, texts, bodies = routed.arguments(values)
    assert ("conv_1", ("imports",), ["\\x01ff", "\\x", "conv_1", "s"], ()) == (conversation, tables, texts, bodies)


@pytest.mark.parametrize(
    "value, text",
    [
        (None, None),
        ("a", "a"),
        (True, "true"),
        (False, "false"),
        (7, "7"),
        (Method.CREATE_ITEMS, "4"),
        (b"\x00\xff", "\\x00ff"),
        (timedelta(days=1, seconds=2, microseconds=3), "1 days 2 seconds 3 microseconds"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), "2026-01-02T03:04:05.000006+00:00"),
        (NEVER_TIME, "infinity"),
        (EARLIEST.replace(tzinfo=None), "-infinity"),
        (datetime.max.replace(tzinfo=UTC), "9999-12-31T23:59:59.999999+00:00"),
        ([], "{}"),
        (['a"b', "c\\d", "NULL", ""], '{"a\\"b","c\\\\d","NULL",""}'),
        ([1, None], '{"1",NULL}'),
        ([b"\x01"], '{"\\\\x01"}'),
    ],
)
def test_values_as_text(value: Any, text: str | None) -> None:
    """Every kind of value that statements have is written as PostgreSQL reads it."""
    assert text == as_text(value)


def test_own_sql() -> None:
    """SQL without types gets those of its arguments."""
    text, tables, texts = shard_statement(
        "DELETE FROM items USING old WHERE id = ANY($1) AND n < $2 AND t > $3 AND i = $4::interval",
        (["a"], 5, datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)),
    )
    assert ("items",) == tables
    assert '{"a"}' == texts[0]
    assert (
        "DELETE FROM {items} AS items USING old WHERE id = ANY(($1[1])::text[]) AND n < ($1[2])::bigint "
        "AND t > ($1[3])::timestamptz AND i = ($1[4])::interval"
    ) == text
