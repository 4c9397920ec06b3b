"""Statements that read whole conversations, with the policy of the lists."""

from functools import lru_cache
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Integer, Text, bindparam, case, func, literal_column, select, true

from server.authorization.permission import Permission
from server.store.sql.conversations import COLUMNS
from server.store.sql.fitting import fit_in_order
from server.store.sql.schema import conversations, items
from server.store.sql.statement import Statement, compile_statement
from server.store.sql.visibility import alive, item_allowed, visible_one

FEW_PLACES = 100  # a conversation of no more is read in one statement
_c, _i = conversations.c, items.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_last: ColumnElement[int] = bindparam("last", type_=BigInteger)
_few: ColumnElement[int] = literal_column(str(FEW_PLACES), Integer)


@lru_cache(maxsize=512)
def head(read: Permission, item_read: Permission) -> Statement:
    """A conversation, its version, and its items if it has `FEW_PLACES` at most: a row for each, or one of NULLs.

    A body of more than ``share`` bytes is NULL.
    """
    page = (
        select(_i.sequence, _small_body())
        .where(_i.conversation_id == _id, _c.last_sequence <= _few, alive(items), item_allowed(item_read, _i.item_id))
        .lateral("page")
    )
    query = select(*COLUMNS, _c.version, *page.c).select_from(conversations.outerjoin(page, true()))
    return compile_statement(query.where(visible_one(read)).order_by(page.c.sequence), "read")


@lru_cache(maxsize=512)
def block(read: Permission, item_read: Permission, *, small: bool) -> Statement:
    """The first ``count`` items with the sequences behind ``first`` up to ``last``.

    One row of NULLs if there are none, no row when the conversation is not found.

    Args:
        read: To read the conversation.
        item_read: To read items.
        small: Whether bodies of more than ``share`` bytes are NULL, instead of those that would not fit into
            ``page_bytes``; the first one may then have ``single_bytes``.
    """
    size = func.octet_length(_i.body)
    fits = fit_in_order(size, _i.sequence, first=size <= bindparam("single_bytes", type_=Integer))
    body = _small_body() if small else case((fits, _i.body)).label("body")
    page = (
        select(_i.sequence, size.label("size"), body)
        .where(
            _i.conversation_id == _id,
            alive(items),
            item_allowed(item_read, _i.item_id),
            _i.sequence > bindparam("first", type_=BigInteger),
            _i.sequence <= _last,
        )
        .order_by(_i.sequence)
        .limit(bindparam("count", type_=Integer))
        .lateral("page")
    )
    query = select(*page.c).select_from(conversations.outerjoin(page, true()))
    return compile_statement(query.where(visible_one(read)).order_by(page.c.sequence), "read")


def _small_body() -> ColumnElement[bytes]:
    body = case((func.octet_length(_i.body) <= bindparam("share", type_=Integer), _i.body))
    return body.label("body")


@lru_cache(maxsize=512)
def state(read: Permission) -> Statement:
    """Owner and attributes of a conversation, and whether items up to ``last`` were deleted since ``version``."""
    since: ColumnElement[int] = bindparam("version", type_=BigInteger)
    deleted = (
        select(_i.sequence)
        .where(_i.conversation_id == _id, _i.delete_time.is_not(None), _i.version > since, _i.sequence <= _last)
        .correlate(conversations)
        .exists()
    )
    lost = case((_c.version > since, (_c.purged_version > since) | deleted), else_=literal_column("false"))
    columns: tuple[ColumnElement[Any], ...] = (_c.owner, _c.attributes, lost.label("lost"))
    return compile_statement(select(*columns).where(visible_one(read)), "read")
