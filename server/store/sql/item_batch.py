"""The items of one write as rows, and the INSERT that stores them."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Insert,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.store.sql.schema import Time, conversations, items
from server.store.sql.visibility import item_allowed, visible_one

# The columns of an item that a statement for several calls has as parameters, an array for each.
ITEM_COLUMNS = {
    "item_id": Text,
    "type": Text,
    "role": Text,
    "status": Text,
    "create_time": Time,
    "body": LargeBinary,
}
_SENT = ("item_id", "type", "role", "status", "create_time", "body")
_COLUMNS = ("conversation_id", "sequence", "version", *_SENT, "author")


_now: ColumnElement[datetime] = bindparam("now", type_=Time)
_conversation_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_author: ColumnElement[str] = bindparam("author", type_=Text)
_nobody: ColumnElement[str] = literal_column("''", Text)


def _array(name: str, type_: Any = Text) -> ColumnElement[Any]:
    return bindparam(name, type_=ARRAY(type_))


def sent_rows() -> CTE:
    """The items of a request without references, as rows."""
    arrays = [_array("item_ids"), _array("types"), _array("roles"), _array("statuses"), _array("bodies", LargeBinary)]
    rows = func.unnest(*arrays).table_valued(
        "item_id", "type", "role", "status", "body", with_ordinality="ordinal", name="sent"
    )
    rows = rows.render_derived()
    return select(*rows.c, _now.label("create_time"), _author.label("author")).cte("rows")


def copied_rows() -> CTE:
    """The items of a request whose references have been read, as rows; each with its own create_time and author."""
    columns = {
        "item_ids": Text,
        "types": Text,
        "roles": Text,
        "statuses": Text,
        "bodies": LargeBinary,
        "create_times": Time,
        "authors": Text,
    }
    names = ("item_id", "type", "role", "status", "body", "create_time", "author")
    arrays = [_array(name, type_) for name, type_ in columns.items()]
    rows = func.unnest(*arrays).table_valued(*names, with_ordinality="ordinal", name="sent").render_derived()
    return select(*rows.c).cte("rows")


def resolved_rows(read: Permission, item_read: Permission) -> CTE:
    """The items of a request as rows, with the referenced items in place of references; a copy keeps its author.

    ``found`` is false in the row of a reference that does not exist or that the caller may not read.
    """
    arrays = [
        _array("item_ids"),
        _array("types"),
        _array("roles"),
        _array("statuses"),
        _array("bodies", LargeBinary),
        _array("reference_conversations"),
        _array("reference_items"),
    ]
    columns = ("item_id", "type", "role", "status", "body", "reference_conversation", "reference_item")
    rows = func.unnest(*arrays).table_valued(*columns, with_ordinality="ordinal", name="sent").render_derived()
    source, home = items.alias("source"), conversations.alias("home")
    readable = source.join(
        home,
        and_(visible_one(read, source.c.conversation_id, home), item_allowed(item_read, source.c.item_id, home)),
    )
    same = and_(
        source.c.conversation_id == rows.c.reference_conversation,
        source.c.item_id == rows.c.reference_item,
        source.c.delete_time.is_(None),
    )
    own = rows.c.reference_item == _nobody
    copied = [
        case((own, rows.c[name]), else_=source.c[name]).label(name)
        for name in ("item_id", "type", "role", "status", "body")
    ]
    query: Select[Any] = select(
        *copied,
        rows.c.ordinal,
        case((own, _now), else_=source.c.create_time).label("create_time"),
        case((own, _author), else_=author_of(source.c.author, home.c.owner)).label("author"),
        or_(own, source.c.item_id.is_not(None)).label("found"),
    )
    return query.select_from(rows.outerjoin(readable, same)).cte("rows")


def author_for(author: ColumnElement[str], owner: ColumnElement[str]) -> ColumnElement[str]:
    """The column ``author`` of an item by ``author`` in a conversation of ``owner``."""
    return func.coalesce(func.nullif(author, owner), _nobody)


def author_of(column: ColumnElement[str], owner: ColumnElement[str]) -> ColumnElement[str]:
    """Who appended an item with this ``column`` author to a conversation of ``owner``."""
    return func.coalesce(func.nullif(column, _nobody), owner)


def all_found(rows: CTE) -> ColumnElement[bool]:
    """Whether every reference among `resolved_rows` was found."""
    found: ColumnElement[bool] = select(func.bool_and(rows.c.found)).scalar_subquery()
    return found


def fit_together(rows: CTE) -> ColumnElement[bool]:
    """Whether the items of ``rows`` have at most ``max_bytes`` together; sizes are read without the bodies."""
    size = select(func.sum(func.octet_length(rows.c.body))).scalar_subquery()
    return size <= bindparam("max_bytes", type_=BigInteger)


def all_allowed(permission: Permission, rows: CTE) -> ColumnElement[bool]:
    """Whether ``permission`` covers every one of ``rows``, by their ``item_id``, in the statement's conversation."""
    if not permission.reads_row_id:
        return item_allowed(permission, literal_column("''"))
    denied = select(rows.c.item_id).where(not_(item_allowed(permission, rows.c.item_id))).correlate(conversations)
    return not_(denied.exists())


def insert_items(rows: CTE, target: CTE) -> CTE:
    """Inserts ``rows`` as items of a conversation.

    Args:
        rows: Of `sent_rows` or `resolved_rows`.
        target: One row, if the conversation is written: its ``owner``, ``base``, the sequence that the first item
            follows, and the ``version`` the items get.
    """
    columns = (_conversation_id, target.c.base + rows.c.ordinal, target.c.version, *(rows.c[name] for name in _SENT))
    author = author_for(rows.c.author, target.c.owner)
    query = select(*columns, author).select_from(target.join(rows, true()))
    statement: Insert = insert(items).from_select(_COLUMNS, query)
    return statement.cte("placed")
