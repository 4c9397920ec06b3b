"""A permission: a resource, an action, and the plan for them with its SQL parameters."""

from typing import Any

from server.policy.plan import Always, Conditional, Never, Plan


class Permission:
    """What a plan permits, ready for SQL.

    Two are equal when their SQL is: they have the same name and the same shape.
    So statements are compiled once for all callers whose plans look alike, and
    each caller's own values go in as parameters.
    """

    __slots__ = ("_key", "action", "name", "plan", "resource", "values")

    def __init__(self, resource: str, action: str, plan: Plan) -> None:
        self.resource = resource
        self.action = action
        self.name = name = f"{resource}_{action}"  # the prefix of its SQL parameters
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
    def reads_row_id(self) -> bool:
        """Whether it depends on the id of the row."""
        return isinstance(self.plan, Conditional) and self.plan.reads_row_id


def _sent(value: str | tuple[str, ...]) -> str | list[str]:
    return value if isinstance(value, str) else list(value)
