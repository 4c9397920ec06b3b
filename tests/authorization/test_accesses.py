"""What is kept of principals between calls follows from the policy in force, and is bounded."""

from server.authorization.access import AccessCache
from server.policy.load import load
from server.policy.plan import Always, Never
from server.policy.principal import Principal

NOBODY = load("- forbid: {actions: [read]}\n")
EVERYBODY = load("- permit: {actions: [read]}\n")


def caller(name: str) -> Principal:
    """A principal of its own, equal to others of the name."""
    return Principal(tenant="", id=name, attributes={"teams": frozenset({"a"})})


def test_equal_principals_share_their_access() -> None:
    """A caller is planned for once, whichever object stands for it."""
    accesses = AccessCache(EVERYBODY)
    assert accesses.of(caller("a")) is accesses.of(caller("a"))
    assert accesses.of(caller("a")) is not accesses.of(caller("b"))


def test_another_policy_forgets_what_followed_from_the_last() -> None:
    """From the next call on the new policy decides; a call under way keeps the one it began with."""
    accesses = AccessCache(NOBODY)
    under_way = accesses.of(caller("a"))
    accesses.replace(EVERYBODY)
    assert EVERYBODY is accesses.policy
    assert isinstance(accesses.of(caller("a")).may("conversation", "read").plan, Always)
    assert isinstance(under_way.may("conversation", "read").plan, Never)


def test_only_so_many_are_kept() -> None:
    """Very many callers do not fill the memory; who is forgotten is planned for again."""
    accesses = AccessCache(EVERYBODY, size=2)
    first = accesses.of(caller("a"))
    for name in ("b", "c"):
        accesses.of(caller(name))
    assert first is not accesses.of(caller("a"))
    assert 2 == len(accesses._current[1])
