"""The copy of the attributes of conversations that lists read."""

from typing import Any

from sqlalchemy import CTE, ColumnElement, Text, bindparam, func, select, true
from sqlalchemy.dialects.postgresql import Insert, insert

from server.store.sql.schema import conversation_attributes

_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)


def insert_attributes(
    written: CTE,
    attributes: ColumnElement[Any],
    create_time: ColumnElement[Any],
    active_time: ColumnElement[Any] | None = None,
) -> Insert:
    """Inserts a row for each of the ``attributes`` of the conversation in ``written``, which has its id.

    ``active_time``: as `activity` has it, unless it is the ``create_time``.
    """
    held = func.unnest(attributes).table_valued("value").render_derived()
    columns: dict[str, ColumnElement[Any]] = {
        "conversation_id": written.c.id,
        "attribute": held.c.value,
        "tenant": _tenant,
        "create_time": create_time,
    }
    if active_time is not None:
        columns["active_time"] = active_time
    query = select(*columns.values()).select_from(written.join(held, true()))
    return insert(conversation_attributes).from_select(list(columns), query)
