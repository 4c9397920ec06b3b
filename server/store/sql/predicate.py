"""Policies as SQL: the one place where a residual becomes a condition on rows."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Text, and_, any_, bindparam, false, literal_column, not_, or_, true
from sqlalchemy.dialects.postgresql import ARRAY

from server.authorization.permission import Permission
from server.policy.plan import Always, Conditional, Never
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Shares, Unowned

Text_ = ColumnElement[Any]
# Where a statement takes a value of a permission from, by its name and type.
Parameter: TypeAlias = Callable[[str, Any], ColumnElement[Any]]
_UNOWNED = literal_column("''", Text)


def bound(name: str, type_: Any) -> ColumnElement[Any]:
    """A parameter of the statement: one value for all of it."""
    return bindparam(name, type_=type_)


def _lowered(
    residual: Residual, names: Iterator[str], parameter: Parameter, owner: Text_, attributes: Text_, row_id: Text_
) -> ColumnElement[bool]:
    """``residual`` as SQL; parameters take their names in the order of `residual.values`."""
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
            return not_(_lowered(part, names, parameter, owner, attributes, row_id))
        case And(parts):
            return and_(*[_lowered(part, names, parameter, owner, attributes, row_id) for part in parts])
        case Or(parts):
            return or_(*[_lowered(part, names, parameter, owner, attributes, row_id) for part in parts])


def condition(
    permission: Permission, owner: Text_, attributes: Text_, row_id: Text_, parameter: Parameter = bound
) -> ColumnElement[bool]:
    """Whether ``permission`` reaches a row with these columns; an item has its conversation's owner and attributes."""
    match permission.plan:
        case Always():
            return true()
        case Never():
            return false()
        case Conditional(residual):
            names = (f"{permission.name}_{number}" for number in count())
            return _lowered(residual, names, parameter, owner, attributes, row_id)
