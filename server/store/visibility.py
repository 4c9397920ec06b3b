"""Which conversations exist for a caller: the first conjuncts of every statement."""

from typing import Any

from sqlalchemy import ColumnElement, FromClause, Text, and_, bindparam

from server.policy.principal import Principal
from server.store.schema import conversations

_tenant: ColumnElement[str] = bindparam("tenant", type_=Text)


def visible(table: FromClause = conversations) -> ColumnElement[bool]:
    """Of the caller's tenant, and not deleted."""
    return and_(table.c.tenant == _tenant, table.c.delete_time.is_(None))


def values_of(principal: Principal) -> dict[str, Any]:
    """The parameters of `visible`."""
    return {"tenant": principal.tenant}
