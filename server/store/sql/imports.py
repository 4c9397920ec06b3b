"""Statements that write whole conversations, which nobody sees before the last of them.

While a conversation is imported its row belongs to `NO_TENANT` and is a tombstone of the end of time: it takes the id,
no list, no read, no watch and no purge finds it, and the log of changes tells nobody of it. What it will be is in
`imports`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Insert,
    Integer,
    Interval,
    LargeBinary,
    Select,
    Text,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID
from sqlalchemy.dialects.postgresql import insert as pg_insert

from server.store.sql.attributes import insert_attributes
from server.store.sql.expiry import schedule_check
from server.store.sql.item_batch import ITEM_COLUMNS, author_for
from server.store.sql.schema import Time, conversations, imports, items
from server.store.sql.statement import Statement, compile_statement

NO_TENANT = "importing".ljust(300, ".")  # longer than the name of a tenant can be
DISCARDED_ROWS = 5_000  # of one statement
# The columns of the parameters of `STORE`, an array for each.
ITEM_ROWS: dict[str, Any] = {"sequence": BigInteger, "author": Text, **ITEM_COLUMNS}
_c, _i, _m = conversations.c, items.c, imports.c
_id: ColumnElement[str] = bindparam("conversation_id", type_=Text)
_stream: ColumnElement[str] = bindparam("stream", type_=UUID(as_uuid=False))
_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)
_head: ColumnElement[bytes] = bindparam("head", type_=LargeBinary)
_digest: ColumnElement[bytes] = bindparam("digest", type_=LargeBinary)
_zero: ColumnElement[int] = literal_column("0", BigInteger)
_one: ColumnElement[int] = literal_column("1", BigInteger)
_never: ColumnElement[Any] = literal_column("'infinity'::timestamptz", Time)
_long_ago: ColumnElement[Any] = literal_column("'epoch'::timestamptz", Time)
_PROGRESS = (_m.stored_sequence, _m.item_count, _m.digest)
_own = (_m.conversation_id == _id, _m.stream == _stream)


def _begin() -> Statement:
    """Takes an id that no conversation has; no row when one has it."""
    no_tenant = literal_column(f"'{NO_TENANT}'", Text)
    columns = {
        "id": _id,
        "tenant": no_tenant,
        "owner": literal_column("''", Text),
        "attributes": literal_column("'{}'", ARRAY(Text)),
        "metadata": literal_column("'{}'", JSONB),
        "last_sequence": _zero,
        "version": _one,
        "revision": _one,
        "create_time": _long_ago,
        "update_time": _long_ago,
        "delete_time": _never,
    }
    placed = pg_insert(conversations).from_select(list(columns), select(*columns.values()))
    taken = placed.on_conflict_do_nothing(index_elements=[_c.id]).returning(_c.id).cte("taken")
    row = {
        "conversation_id": taken.c.id,
        "tenant": _tenant,
        "head": _head,
        "stream": _stream,
        "stored_sequence": _zero,
        "item_count": _zero,
        "digest": _digest,
    }
    begun = insert(imports).from_select(list(row), select(*row.values())).returning(_m.conversation_id).cte("begun")
    return compile_statement(select(begun.c.conversation_id), "write")


def _take() -> Statement:
    """Goes on with an import of the same head; from then on the stream that had begun it cannot. No row without one."""
    same = (_m.conversation_id == _id, _m.tenant == _tenant, _m.head == _head)
    taken = (
        update(imports).where(*same).values(stream=_stream, touch_time=func.now()).returning(*_PROGRESS).cte("taken")
    )
    return compile_statement(select(*taken.c), "write")


def _abandon() -> Statement:
    """Makes an import one that nobody can go on with; no row when the tenant has none of this id."""
    own = (_m.conversation_id == _id, _m.tenant == _tenant)
    empty = literal_column("''::bytea", LargeBinary)
    values = {"stream": _stream, "head": empty, "touch_time": func.now()}
    left = update(imports).where(*own).values(values).returning(_m.conversation_id).cte("left_over")
    return compile_statement(select(left.c.conversation_id), "write")


def _discard() -> Statement:
    """Removes some items of an abandoned import; ``count`` of them, and whether the import is this stream's."""
    mine = select(_m.conversation_id).where(*_own).with_for_update().cte("mine")
    some = (
        select(_i.sequence)
        .where(_i.conversation_id == _id)
        .limit(literal_column(str(DISCARDED_ROWS), Integer))
        .correlate(None)
    )
    gone = (
        delete(items)
        .where(_i.conversation_id == _id, _i.sequence.in_(some), exists(select(mine.c.conversation_id)))
        .returning(_i.sequence)
        .cte("gone")
    )
    count = select(func.count()).select_from(gone).scalar_subquery().label("count")
    is_own = exists(select(mine.c.conversation_id)).label("is_own")
    return compile_statement(select(count, is_own), "write")


def _restart() -> Statement:
    """Begins an abandoned import anew, whose items were removed."""
    values = {"head": _head, "digest": _digest, "stored_sequence": _zero, "item_count": _zero}
    begun = update(imports).where(*_own).values(values).returning(_m.conversation_id).cte("begun")
    return compile_statement(select(begun.c.conversation_id), "write")


def _store() -> Statement:
    """Stores a block of items; no row when it is there, or another stream has taken the import."""
    progress = {
        "stored_sequence": bindparam("stored_sequence", type_=BigInteger),
        "item_count": bindparam("item_count", type_=BigInteger),
        "digest": _digest,
        "touch_time": func.now(),
    }
    fewer = _m.stored_sequence < bindparam("stored_sequence", type_=BigInteger)  # a repeated statement does nothing
    mine = update(imports).where(*_own, fewer).values(progress).returning(_m.conversation_id).cte("mine")
    arrays = [bindparam(f"items_{name}", type_=ARRAY(type_)) for name, type_ in ITEM_ROWS.items()]
    rows = func.unnest(*arrays).table_valued(*ITEM_ROWS, name="rows").render_derived()
    placed = {"conversation_id": mine.c.conversation_id, "version": _one, **{name: rows.c[name] for name in ITEM_ROWS}}
    placed["author"] = author_for(rows.c.author, bindparam("owner", type_=Text))  # the row has no owner yet
    query: Select[Any] = select(*placed.values()).select_from(mine.join(rows, true()))
    stored: Insert = insert(items).from_select(list(placed), query)
    return compile_statement(select(mine.c.conversation_id).add_cte(stored.cte("stored")), "append")


def _verify() -> Statement:
    """A row if the import is this stream's and has come to a digest."""
    return compile_statement(select(_m.conversation_id).where(*_own, _m.digest == _digest), "read")


def _finish() -> Statement:
    """Lets a conversation be what its head says, for everybody; no row when another stream has taken the import."""
    done = delete(imports).where(*_own).returning(_m.conversation_id).cte("done")
    create_time: ColumnElement[Any] = bindparam("create_time", type_=Time)
    attributes = bindparam("attributes", type_=ARRAY(Text))
    values = {
        "tenant": _tenant,
        "owner": bindparam("owner", type_=Text),
        "attributes": attributes,
        "metadata": cast(bindparam("metadata", type_=Text), JSONB),
        "last_sequence": bindparam("last_sequence", type_=BigInteger),
        "version": _c.version + _one,
        "revision": bindparam("revision", type_=BigInteger),
        "create_time": create_time,
        "update_time": bindparam("update_time", type_=Time),
        "delete_time": null(),
        "expire_time": bindparam("expire_time", type_=Time),
        "idle_ttl": bindparam("idle_ttl", type_=Interval),
        "limit_time": bindparam("limit_time", type_=Time),
        "forked_from": bindparam("forked_from", type_=Text),
        "forked_sequence": bindparam("forked_sequence", type_=BigInteger),
        "active_time": func.greatest(create_time, _newest_time(done.c.conversation_id)),
    }
    written = update(conversations).where(_c.id == done.c.conversation_id).values(values)
    shown = written.returning(_c.id, _c.expire_time, _c.active_time).cte("shown")
    indexed = insert_attributes(shown, attributes, create_time, shown.c.active_time).cte("indexed")
    scheduled = schedule_check(shown).cte("scheduled")
    return compile_statement(select(shown.c.id).add_cte(indexed, scheduled), "write")


def _newest_time(conversation_id: ColumnElement[str]) -> ColumnElement[Any]:
    """The create_time of the last item; NULL if there is none."""
    newest = select(_i.create_time).where(_i.conversation_id == conversation_id).order_by(_i.sequence.desc())
    return newest.limit(literal_column("1", Integer)).scalar_subquery()


BEGIN, TAKE, ABANDON, DISCARD, RESTART, STORE, VERIFY, FINISH = (
    _begin(),
    _take(),
    _abandon(),
    _discard(),
    _restart(),
    _store(),
    _verify(),
    _finish(),
)
