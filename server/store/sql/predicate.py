"""Policies as SQL: the one place where a residual becomes a condition on rows."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Text, and_, any_, bindparam, false, literal_column, not_, or_, true
from sqlalchemy.dialects.postgresql import ARRAY

from server.policy.plan import Always, Conditional, Never, Plan
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Shares, Unowned

Text_ = ColumnElement[Any]
# Where a statement takes a value of a permission from, by its name and type.
Parameter: TypeAlias = Callable[[str, Any], ColumnElement[Any]]
_UNOWNED = literal_column("''", Text)


def bound(name: str, type_: Any) -> ColumnElement[Any]:
    """A parameter of the statement: one value for all of it."""
    return bindparam(name, type_=type_)


class Permission:
    """What a plan allows, ready for SQL.

    Two are equal when their SQL is: they have the same name and the same shape.
    So statements are compiled once for all callers whose plans look alike, and
    each caller's own values go in as parameters.
    """

    __slots__ = ("_key", "name", "plan", "values")

    def __init__(self, name: str, plan: Plan) -> None:
        self.name = name  # of the permission, `item_read`; its parameters begin with it
        self.plan = plan
        self.values: dict[str, Any] = {}
        if isinstance(plan, Conditional):
            self.values = {f"{name}_{number}": _sent(value) for number, value in enumerate(plan.values)}
        self._key = (name, self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Permission) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def shape(self) -> str:
        """The plan without its values."""
        match self.plan:
            case Always():
                return "always"
            case Never():
                return "never"
            case Conditional():
                return self.plan.shape

    @property
    def asks_for_id(self) -> bool:
        """Whether the condition is one on the id of the row too."""
        return "id" in self.shape  # no other word of a shape has these letters

    def where(
        self, owner: Text_, attributes: Text_, row_id: Text_, parameter: Parameter = bound
    ) -> ColumnElement[bool]:
        """The condition on a row with these columns; for an item, owner and attributes are its conversation's."""
        match self.plan:
            case Always():
                return true()
            case Never():
                return false()
            case Conditional(residual):
                names = (f"{self.name}_{number}" for number in count())
                return _lowered(residual, names, parameter, owner, attributes, row_id)


def _sent(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)


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
