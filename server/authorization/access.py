"""The permissions of one principal, as interceptors and the store use them."""

from collections.abc import Sequence
from contextvars import ContextVar
from functools import cached_property
from typing import Any

from server.authorization.index_ranges import IndexRanges, index_ranges
from server.authorization.permission import Permission
from server.errors import ActionDenied
from server.policy.evaluate import evaluate, refusing_rules
from server.policy.plan import Always, Never, plan
from server.policy.principal import Principal, pairs
from server.policy.residual import Row
from server.policy.rules import Policy


class Access:
    """The permissions of one principal under one policy, each planned at first use.

    It is a function of the two, so it is kept until the policy changes.
    """

    def __init__(self, principal: Principal, policy: Policy, accesses: "AccessCache | None" = None) -> None:
        self.principal = principal
        self.policy = policy
        self._accesses = accesses
        self.values: dict[str, Any] = {"tenant": principal.tenant}  # SQL parameters of all planned permissions
        self._permissions: dict[tuple[str, str], Permission] = {}
        self._refusing: dict[tuple[str, str], tuple[int | None, ...]] = {}

    def renewed(self, principal: Principal) -> "Access":
        """Returns the access of ``principal`` under the policy in force now, for a stream that outlasts both."""
        return self._accesses.of(principal) if self._accesses else Access(principal, self.policy)

    def may(self, resource: str, action: str) -> Permission:
        """Returns the permission, and adds its parameters to `values`."""
        found = self._permissions.get((resource, action))
        if found is None:
            found = Permission(resource, action, plan(self.policy, self.principal, resource, action))
            self.values |= found.values
            self._permissions[resource, action] = found
        return found

    def refusing_rules(self, resource: str, action: str) -> tuple[int | None, ...]:
        """Returns the rules of which one has refused, if the row did not get the permission; None: no rule matches.

        Kept, because a caller who is refused may ask as often as one who is not.
        """
        found = self._refusing.get((resource, action))
        if found is None:
            found = self._refusing[resource, action] = refusing_rules(self.policy, self.principal, resource, action)
        return found

    def demand(self, resource: str, action: str) -> Permission:
        """Returns the permission, unless it is one for no row at all.

        Raises:
            ActionDenied: The plan is "never", which is known without reading a row.
        """
        permission = self.may(resource, action)
        if isinstance(permission.plan, Never):
            raise ActionDenied(resource, action)
        return permission

    def decide(self, resource: str, action: str, row: Row) -> None:
        """Decides about a row in memory, such as one that is about to be inserted.

        Raises:
            ActionDenied: The policy refuses it.
        """
        if not evaluate(self.may(resource, action).plan, row):
            raise ActionDenied(resource, action)

    def decide_values(self, attributes: Sequence[str]) -> None:
        """Decides whether the principal may give a conversation these attributes, each ``name=value``.

        Raises:
            ActionDenied: Some are not the principal's own, and it may not share everything.
        """
        foreign = set(attributes) - pairs(self.principal.attributes)
        if foreign and not isinstance(self.may("conversation", "share").plan, Always):
            raise ActionDenied("conversation", "share")

    @cached_property
    def index_ranges(self) -> IndexRanges | None:
        """The index ranges of all conversations that the principal may read; None for the whole tenant."""
        return index_ranges(self.may("conversation", "read").plan)


class AccessCache:
    """A bounded cache of the access of principals under the policy in force."""

    def __init__(self, policy: Policy, size: int = 4096) -> None:
        self._size = size
        self.replace(policy)

    @property
    def policy(self) -> Policy:
        """The policy in force."""
        return self._current[0]

    def replace(self, policy: Policy) -> None:
        """Puts ``policy`` in force from the next call on, and empties the cache."""
        accesses: dict[Principal, Access] = {}
        self._current = policy, accesses  # one assignment, so that no call sees plans of another policy

    def of(self, principal: Principal) -> Access:
        """Returns what ``principal`` may do."""
        policy, accesses = self._current
        access = accesses.get(principal)
        if access is None:
            if len(accesses) >= self._size:
                del accesses[next(iter(accesses))]
            access = accesses[principal] = Access(principal, policy, self)
        return access


# Set once per call by the interceptor `Authorization`.
current_access: ContextVar[Access] = ContextVar("current_access")
