"""Statements that create conversations: one with all that a create may have, and one for the creates of many calls."""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Interval,
    Select,
    SmallInteger,
    Table,
    Text,
    bindparam,
    cast,
    func,
    insert,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert

from server.authorization.permission import Permission
from server.store.sql.attributes import insert_attributes
from server.store.sql.expiry import schedule_check
from server.store.sql.idempotency import REQUEST_COLUMNS, reserve
from server.store.sql.item_batch import (
    ITEM_COLUMNS,
    all_found,
    copied_rows,
    fit_together,
    insert_items,
    resolved_rows,
    sent_rows,
)
from server.store.sql.schema import Time, conversation_attributes, conversations, items, requests
from server.store.sql.statement import Statement, compile_statement

CONSTRAINT = "conversations_pkey"  # violated when a create is repeated: its request id gives the same conversation id
_LOCK_TIMEOUT = "20ms"  # of a shared statement; nobody waits longer for the create of another transaction

_c = conversations.c
_zero: ColumnElement[int] = literal_column("0", BigInteger)
_one: ColumnElement[int] = literal_column("1", BigInteger)

# The columns of the parameters of `create_many`, which are an array for each column.
CREATES = {
    "conversation_id": Text,
    "tenant": Text,
    "owner": Text,
    "attributes": Text,  # an array as text: an array of arrays would have to be rectangular
    "metadata": Text,
    "last_sequence": BigInteger,
    "create_time": Time,
}
EXPIRIES: dict[str, Any] = {
    "expire_time": Time,
    "idle_ttl": Interval,
    "limit_time": Time,
}  # further ones, if one of them expires
ATTRIBUTES = {"conversation_id": Text, "attribute": Text, "tenant": Text, "create_time": Time}
ITEMS = {
    "conversation_id": Text,
    "sequence": BigInteger,
    **ITEM_COLUMNS,
}
REQUESTS = {
    "conversation_id": Text,
    **REQUEST_COLUMNS,
}


@lru_cache(maxsize=512)
def create(
    references: tuple[Permission, Permission] | None,
    *,
    attributes: bool,
    items: bool,
    expires: bool,
    reserves: bool,
    copied: bool = False,
) -> Statement:
    """Inserts a conversation with its first items; nothing when a reference is not found.

    Args:
        references: To read conversations and items, if items are references; all items together must then
            fit into ``max_bytes``.
        attributes: Whether the conversation has attributes.
        items: Whether it has first items.
        expires: Whether it has an expiry.
        reserves: Whether there is a request id.
        copied: Whether references have been read before, so that there are none any more.
    """
    own = copied_rows if copied else sent_rows
    rows = resolved_rows(*references) if references else own() if items else None
    now = bindparam("now", type_=Time)
    columns = _columns(
        conversation_id=bindparam("conversation_id", type_=Text),
        tenant=bindparam("tenant", type_=Text),
        owner=bindparam("owner", type_=Text),
        attributes=bindparam("attributes", type_=ARRAY(Text)),
        metadata=bindparam("metadata", type_=Text),
        last_sequence=bindparam("last_sequence", type_=BigInteger),
        create_time=now,
    )
    if expires:
        columns |= {name: bindparam(name, type_=type_) for name, type_ in EXPIRIES.items()}
    source: Select[Any] = select(*columns.values())
    if references and rows is not None:
        source = source.where(all_found(rows), fit_together(rows))
    base = _zero.label("base")
    returned = (_c.id, _c.owner, _c.version, base, *((_c.expire_time,) if expires else ()))
    created = insert(conversations).from_select(list(columns), source).returning(*returned).cte("created")
    statement: Select[Any] = select(created.c.id)
    if expires:
        statement = statement.add_cte(schedule_check(created).cte("scheduled"))
    if attributes:
        inserted = insert_attributes(created, columns["attributes"], now)
        statement = statement.add_cte(inserted.cte("indexed"))
    if rows is not None:
        statement = statement.add_cte(insert_items(rows, created))
    if reserves:
        statement = statement.add_cte(reserve(created).cte("reserved"))
    # Only the id of a repeated create can be that of another session's row.
    return compile_statement(statement, "write" if rows is None else "append", waits=reserves)


def _columns(
    *,
    conversation_id: ColumnElement[str],
    tenant: ColumnElement[str],
    owner: ColumnElement[str],
    attributes: ColumnElement[Any],
    metadata: ColumnElement[str],
    last_sequence: ColumnElement[int],
    create_time: ColumnElement[Any],
) -> dict[str, ColumnElement[Any]]:
    """The columns of a new conversation."""
    return {
        "id": conversation_id,
        "tenant": tenant,
        "owner": owner,
        "attributes": attributes,
        "metadata": cast(metadata, JSONB),
        "last_sequence": last_sequence,
        "version": _one,
        "revision": _one,
        "create_time": create_time,
        "update_time": create_time,
    }


@lru_cache(maxsize=8)
def create_many(*, attributes: bool, items: bool, expires: bool, reserves: bool) -> Statement:
    """Inserts several conversations with their first items; returns the ids of those it has inserted.

    Args:
        attributes: Whether one of them has attributes.
        items: Whether one of them has first items.
        expires: Whether one of them has an expiry.
        reserves: Whether they have request ids: all, or none. A conversation that exists is then left out, since
            an earlier call has created it; and when another transaction is creating it, the statement fails after
            a moment (SQLSTATE 55P03).

    The ids of conversations without a request id are new, and those of their items are: no other session has them.
    """
    rows = _rows("creates", {**CREATES, **(EXPIRIES if expires else {})})
    held = cast(rows.c.attributes, ARRAY(Text)) if attributes else literal_column("'{}'", ARRAY(Text))
    columns = _columns(**{name: rows.c[name] for name in CREATES if name != "attributes"}, attributes=held)
    if expires:
        columns |= {name: rows.c[name] for name in EXPIRIES}
    returned = (_c.id, _c.expire_time) if expires else (_c.id,)
    created = _insert_conversations(columns, rows, reserves=reserves).returning(*returned).cte("created")
    statement: Select[Any] = select(created.c.id)
    if expires:
        statement = statement.add_cte(schedule_check(created).cte("scheduled"))
    if attributes:
        statement = statement.add_cte(_insert_rows(conversation_attributes, "attributes", ATTRIBUTES, created))
    if items:
        statement = statement.add_cte(_insert_items(created))
    if reserves:
        zero = literal_column("0", SmallInteger)
        none = {"first_sequence": _zero, "item_count": zero}
        statement = statement.add_cte(_insert_rows(requests, "requests", REQUESTS, created, none))
    return compile_statement(statement, "append" if items else "write", waits=False)


def _insert_conversations(columns: dict[str, ColumnElement[Any]], rows: Any, *, reserves: bool) -> Any:
    source = select(*columns.values())
    if not reserves:
        return insert(conversations).from_select(list(columns), source)
    # Volatile, and joined: it has run before the first row is inserted. Its effect ends with the transaction.
    arguments: list[ColumnElement[str]] = [literal_column("'lock_timeout'"), literal_column(f"'{_LOCK_TIMEOUT}'")]
    bound = select(func.set_config(*arguments, true()).label("bound")).cte("bound")
    source = source.select_from(rows.join(bound, true()))
    return pg_insert(conversations).from_select(list(columns), source).on_conflict_do_nothing(index_elements=[_c.id])


def _insert_items(created: CTE) -> CTE:
    return _insert_rows(items, "items", ITEMS, created, {"version": _one})


def _insert_rows(
    table: Table, name: str, names: dict[str, Any], created: CTE, fixed: dict[str, ColumnElement[Any]] | None = None
) -> CTE:
    """Inserts those of the rows ``name`` whose conversation was created, with the same ``fixed`` columns in each."""
    rows = _rows(name, names)
    columns = {**{column: rows.c[column] for column in names}, **(fixed or {})}
    query = select(*columns.values()).join_from(rows, created, created.c.id == rows.c.conversation_id)
    return insert(table).from_select(list(columns), query).cte(f"inserted_{name}")


def _rows(name: str, columns: dict[str, Any]) -> Any:
    """The arrays ``<name>_<column>`` as a table."""
    arrays = [bindparam(f"{name}_{column}", type_=ARRAY(type_)) for column, type_ in columns.items()]
    return func.unnest(*arrays).table_valued(*columns, name=name).render_derived()
