"""The copy of the attributes of conversations that lists read."""

from typing import Any

from sqlalchemy import CTE, ColumnElement, Text, bindparam, func, select, true
from sqlalchemy.dialects.postgresql import Insert, insert

from server.store.sql.schema import conversation_attributes

_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)


def insert_attributes(written: CTE, attributes: ColumnElement[Any], create_time: ColumnElement[Any]) -> Insert:
    """Inserts a row for each of the ``attributes`` of the conversation in ``written``, which has its id."""
    held = func.unnest(attributes).table_valued("value").render_derived()
    query = select(written.c.id, held.c.value, _tenant, create_time).select_from(written.join(held, true()))
    names = ["conversation_id", "attribute", "tenant", "create_time"]
    return insert(conversation_attributes).from_select(names, query)
