"""Policies as SQL: the one place where a residual becomes a condition on rows."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Text, and_, any_, bindparam, false, literal_column, not_, or_, true
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.policy.plan import Always, Conditional, Never
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Shares, Unowned

Column: TypeAlias = ColumnElement[Any]
# Makes the SQL of a value of a permission from the value's name and type.
Parameter: TypeAlias = Callable[[str, Any], ColumnElement[Any]]
_UNOWNED = literal_column("''", Text)


def bind(name: str, type_: Any) -> ColumnElement[Any]:
    """The bind parameter ``name``: the statement has one value of it."""
    return bindparam(name, type_=type_)


def _to_sql(
    residual: Residual, names: Iterator[str], parameter: Parameter, owner: Column, attributes: Column, row_id: Column
) -> ColumnElement[bool]:
    """``residual`` as SQL; ``names`` are those of its values, in the order of `server.policy.residual.values`."""
    match residual:
        case Owned():
            return owner == parameter(next(names), Text)
        case Unowned():
            return owner == _UNOWNED
        case Shares():
            return attributes.op("&&", is_comparison=True)(parameter(next(names), ARRAY(Text)))
        case HasId():
            return row_id == any_(parameter(next(names), ARRAY(Text)))
        case IdMatches():
            return row_id.op("~", is_comparison=True)(parameter(next(names), Text))
        case Not(part):
            return not_(_to_sql(part, names, parameter, owner, attributes, row_id))
        case And(parts):
            return and_(*[_to_sql(part, names, parameter, owner, attributes, row_id) for part in parts])
        case Or(parts):
            return or_(*[_to_sql(part, names, parameter, owner, attributes, row_id) for part in parts])


def condition(
    permission: Permission, owner: Column, attributes: Column, row_id: Column, parameter: Parameter = bind
) -> ColumnElement[bool]:
    """Whether ``permission`` covers a row.

    Args:
        permission: Its values become parameters that begin with its name.
        owner: The principal id of the row's owner; of an item, its conversation's.
        attributes: The row's attributes as an array of ``name=value``; of an item, its conversation's.
        row_id: The id of the conversation or item.
        parameter: Makes the SQL of each value.
    """
    match permission.plan:
        case Always():
            return true()
        case Never():
            return false()
        case Conditional(residual):
            names = (f"{permission.name}_{number}" for number in count())
            return _to_sql(residual, names, parameter, owner, attributes, row_id)
