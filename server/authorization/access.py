"""What one principal may do, as the store needs it."""

from collections.abc import Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from server.authorization.index_ranges import IndexRanges, index_ranges
from server.authorization.permission import Permission
from server.errors import ActionDenied
from server.policy.evaluate import evaluate
from server.policy.plan import Always, Never, plan
from server.policy.principal import Principal, pairs
from server.policy.residual import Row
from server.policy.rules import Policy


class Access:
    """The permissions of one principal under one policy, each planned when it is first asked for.

    It is made once for a principal and kept until the policy changes; what it
    holds is a function of these two alone.
    """

    def __init__(self, principal: Principal, policy: Policy, accesses: "AccessCache | None" = None) -> None:
        self.principal = principal
        self.policy = policy
        self._accesses = accesses
        self.values: dict[str, Any] = {"tenant": principal.tenant}  # the parameters of all its permissions
        self._permissions: dict[tuple[str, str], Permission] = {}

    def renewed(self, principal: Principal) -> "Access":
        """Returns the access of ``principal`` under the policy in force now, for a stream that outlasts both."""
        return self._accesses.of(principal) if self._accesses else Access(principal, self.policy)

    def may(self, resource: str, action: str) -> Permission:
        """The permission; its parameters are in `values` from then on."""
        found = self._permissions.get((resource, action))
        if found is None:
            found = Permission(resource, action, plan(self.policy, self.principal, resource, action))
            self.values |= found.values
            self._permissions[resource, action] = found
        return found

    def demand(self, resource: str, action: str) -> Permission:
        """The permission, when it is not for nothing.

        Raises:
            ActionDenied: The plan is never; nothing needs to be looked up to know.
        """
        permission = self.may(resource, action)
        if isinstance(permission.plan, Never):
            raise ActionDenied(resource, action)
        return permission

    def decide(self, resource: str, action: str, row: Row) -> None:
        """Decides on a row that is at hand, such as one that is about to be made.

        Raises:
            ActionDenied: The policy does not let the principal.
        """
        if not evaluate(self.may(resource, action).plan, row):
            raise ActionDenied(resource, action)

    def decide_values(self, attributes: Sequence[str]) -> None:
        """Decides on attribute values, ``name=value``, that a conversation is to have.

        Raises:
            ActionDenied: Some are not the principal's own, and it may not share everything.
        """
        strange = set(attributes) - pairs(self.principal.attributes)
        if strange and not isinstance(self.may("conversation", "share").plan, Always):
            raise ActionDenied("conversation", "share")

    @cached_property
    def index_ranges(self) -> IndexRanges | None:
        """Where the conversations are that the principal may read."""
        return index_ranges(self.may("conversation", "read").plan)


class AccessCache:
    """The access of principals under the policy in force, made once while they keep calling."""

    def __init__(self, policy: Policy, size: int = 4096) -> None:
        self._size = size
        self.replace(policy)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._current[0]

    def replace(self, policy: Policy) -> None:
        """Decides by ``policy`` from the next call on, and forgets what followed from the one before."""
        made: dict[Principal, Access] = {}
        self._current = policy, made  # one assignment: a call sees a policy with what follows from it

    def of(self, principal: Principal) -> Access:
        """What ``principal`` may do."""
        policy, made = self._current
        access = made.get(principal)
        if access is None:
            if len(made) >= self._size:
                del made[next(iter(made))]
            access = made[principal] = Access(principal, policy, self)
        return access


# Set once per call by the Access interceptor.
current_access: ContextVar[Access] = ContextVar("current_access")
