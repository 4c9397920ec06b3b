"""Statements that follow conversations."""

from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Integer,
    Select,
    Text,
    and_,
    bindparam,
    false,
    func,
    literal_column,
    not_,
    null,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import ARRAY, BYTEA

from server.authorization.permission import Permission
from server.store.sql.conversations import COLUMNS
from server.store.sql.fitting import told_body
from server.store.sql.schema import conversations, items
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, item_allowed, readable_one, unexpired, visible_one

MAX_CHANGES = 100  # of a message
_c, _i = conversations.c, items.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_count: ColumnElement[int] = literal_column(str(MAX_CHANGES + 1), Integer)


def _last_item_id() -> ColumnElement[str]:
    """The id of the item at `last_sequence`, which ties a position to one history of the conversation."""
    last = items.alias("last")
    found = select(last.c.item_id).where(last.c.conversation_id == _id, last.c.sequence == _c.last_sequence)
    return found.correlate(conversations).scalar_subquery().label("last_item_id")


@lru_cache(maxsize=512)
def start(read: Permission, item_read: Permission) -> Statement:
    """How far a conversation is, and ``first_sequence``: the place of the first of its ``newest`` items, or NULL."""
    newest = (
        select(_i.sequence)
        .where(_i.conversation_id == _id, alive(items), item_allowed(item_read, _i.item_id))
        .order_by(_i.sequence.desc())
        .limit(bindparam("newest", type_=Integer))
        .correlate(conversations)
        .subquery("newest")
    )
    first = select(func.min(newest.c.sequence)).scalar_subquery().label("first_sequence")
    columns = (_c.version, _c.last_sequence, _last_item_id(), first)
    return compile_statement(select(*columns).where(visible_one(read)), "read")


@lru_cache(maxsize=512)
def changes(read: Permission, item_read: Permission) -> Statement:
    """A conversation with the first changes of its items behind a position; one row of NULLs if there are none.

    No row when the conversation is not found; a row when it was deleted and could be read before.
    Bodies are NULL beyond ``page_bytes`` together, except that the first may be as large as ``large_bytes``; one above
    that is never read. Each branch is a range of an index, so what is sorted is a page.
    """
    found = union_all(_appended(item_read), _deleted(item_read)).subquery("found")
    page = select(*found.c).order_by(found.c.version, found.c.sequence).limit(_count).subquery("page")
    told = select(
        page.c.version.label("item_version"),
        page.c.sequence,
        page.c.item_id,
        page.c.deleted,
        page.c.size,
        told_body(page.c, (page.c.version, page.c.sequence)),
    ).lateral("told")
    behind = items.alias("behind")
    anchor = select(behind.c.item_id).where(
        behind.c.conversation_id == _id, behind.c.sequence == bindparam("sequence", type_=BigInteger)
    )
    query = (
        select(
            *COLUMNS,
            _c.version,
            not_(and_(alive(conversations), unexpired())).label("gone"),
            _c.purged_version,
            _last_item_id(),
            anchor.correlate(conversations).scalar_subquery().label("anchor_id"),
            func.now().label("now"),  # from before the snapshot
            *told.c,
        )
        .select_from(conversations.outerjoin(told, true()))
        .where(readable_one(read))
        .order_by(told.c.item_version, told.c.sequence)
    )
    return compile_statement(query, "read")


def _appended(item_read: Permission) -> Select[Any]:
    """Living items behind the position; their versions rise with their sequences."""
    return (
        select(
            _i.version,
            _i.sequence,
            _i.item_id,
            false().label("deleted"),
            func.octet_length(_i.body).label("size"),
            _i.body,
        )
        .where(_i.conversation_id == _id, alive(items), _i.sequence > bindparam("sequence", type_=BigInteger))
        .where(item_allowed(item_read, _i.item_id))
        .order_by(_i.sequence)
        .limit(_count)
        .correlate(conversations)
    )


def _deleted(item_read: Permission) -> Select[Any]:
    """Tombstones behind the position, from the index `items_deletions`."""
    position = tuple_(bindparam("version", type_=BigInteger), bindparam("place", type_=BigInteger))
    return (
        select(
            _i.version,
            _i.sequence,
            _i.item_id,
            true().label("deleted"),
            literal_column("0", Integer).label("size"),
            null().cast(BYTEA).label("body"),
        )
        .where(_i.conversation_id == _id, _i.delete_time.is_not(None), tuple_(_i.version, _i.sequence) > position)
        .where(item_allowed(item_read, _i.item_id))
        .order_by(_i.version, _i.sequence)
        .limit(_count)
        .correlate(conversations)
    )


def _poll() -> Statement:
    """The versions of conversations ``ids`` that differ from ``versions``; NULL for one that is gone or has expired."""
    arrays = (bindparam("ids", type_=ARRAY(Text)), bindparam("versions", type_=ARRAY(BigInteger)))
    seen = func.unnest(*arrays).table_valued("id", "version", name="seen").render_derived()
    found = and_(_c.id == seen.c.id, unexpired())
    query = select(seen.c.id, _c.version).select_from(seen.outerjoin(conversations, found))
    return compile_statement(query.where(_c.version.is_distinct_from(seen.c.version)), "read")


POLL = _poll()
