"""How principals share the calls that may run at once."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from server.errors import Overloaded
from server.interceptors.concurrency import FairShare
from tests.support.access import ANN, BOB, EVE, GuardedService, guarded_service
from tests.support.build import append, create, get, user_message
from tests.support.postgres import row_locked
from tests.support.problems import problem

A, B, C = ("acme", "a"), ("acme", "b"), ("acme", "c")


def call(*metadata: tuple[str, str]) -> Any:
    """A call with this metadata."""
    return SimpleNamespace(invocation_metadata=lambda: metadata)


def filled(limit: int, *principals: tuple[str, str], known_by_metadata: bool = True) -> FairShare:
    """A share-out in which these calls run."""
    shares = FairShare(limit, known_by_metadata=known_by_metadata)
    for principal in principals:
        shares.begin(principal, call())
    return shares


def let_in(shares: FairShare, principal: tuple[str, str]) -> bool:
    """Whether a call of the principal is let in."""
    try:
        shares.begin(principal, call(("authorization", principal[1])))
    except Overloaded:
        return False
    return True


def test_one_principal_has_all() -> None:
    """A principal that is alone gets every place, and not one more."""
    shares = filled(4)
    assert [let_in(shares, A) for _ in range(5)] == [True] * 4 + [False]
    assert (shares.count, shares.refused) == (4, 1)


def test_another_gets_its_share_at_once() -> None:
    """When one principal has all places, a second gets half as many beside it, a third a third, and then no more."""
    shares = filled(6, *[A] * 6)
    assert [let_in(shares, B) for _ in range(4)] == [True] * 3 + [False]
    assert [let_in(shares, C) for _ in range(3)] == [True] * 2 + [False]
    assert not let_in(shares, A)
    for _ in range(6):
        shares.end(A)
    assert [let_in(shares, A) for _ in range(3)] == [True, True, False]


def test_each_of_many_has_one() -> None:
    """With more principals than places, each still has one."""
    shares = filled(2, A, B)
    assert let_in(shares, C)
    assert not let_in(shares, C)


def test_places_are_given_back() -> None:
    """A call that ends leaves its place to any other, and nothing of its principal behind."""
    shares = filled(1, A)
    shares.end(A)
    assert (shares.count, dict(shares._running)) == (0, {})
    assert let_in(shares, B)


def test_a_refusal_is_remembered() -> None:
    """Credentials that were refused are refused again unseen, as long as their principal has its share."""
    shares = filled(2, A, A)
    metadata = (("authorization", "a"), ("user-agent", "x"))
    assert not shares.refuses(metadata)
    assert not let_in(shares, A)
    assert shares.refuses(metadata)
    assert not shares.refuses((("authorization", "b"),))
    shares.end(A)
    assert not shares.refuses(metadata)


def test_a_principal_below_its_share_is_let_in_again() -> None:
    """Credentials that were refused are no longer once their principal has less than its share, at the limit too."""
    shares = filled(6, *[A] * 6)
    assert not let_in(shares, A)
    assert all(let_in(shares, principal) for principal in (B, B, B, C, C))
    assert shares.refuses((("authorization", "a"),))
    for _ in range(5):
        shares.end(A)
    assert shares.count == 6
    assert not shares.refuses((("authorization", "a"),))


def test_connections_have_no_credentials_in_metadata() -> None:
    """Where the connection names the principal, nobody is refused by the metadata of somebody else."""
    shares = filled(1, A, known_by_metadata=False)
    assert not let_in(shares, A)
    assert not shares.refuses((("authorization", "a"),))


def test_what_is_remembered_is_bounded() -> None:
    """However many credentials are refused, only so many are remembered."""
    shares = filled(1, A)
    for number in range(5000):
        with pytest.raises(Overloaded):
            shares.begin(A, call(("authorization", str(number))))
    assert len(shares._refused_credentials) <= 4096


@pytest.fixture(scope="module")
async def shared_out(postgres: str, template: str) -> AsyncIterator[GuardedService]:
    """A service with four places."""
    async with guarded_service(postgres, template, max_calls=4) as served:
        yield served


async def test_a_flood_of_one_leaves_room_for_others(shared_out: GuardedService) -> None:
    """While one caller holds every place, another is answered, a third too, and the first is refused."""
    ann, bob, eve = (shared_out.by(who) for who in (ANN, BOB, EVE))
    locked = (await ann.CreateConversation(create())).id
    others = [(await each.CreateConversation(create())).id for each in (bob, eve)]
    async with row_locked(shared_out.url, locked):
        held = [asyncio.ensure_future(ann.CreateItems(append(locked, user_message()))) for _ in range(4)]
        await asyncio.sleep(0.3)
        refusals = [await problem(ann.GetConversation(get(locked))) for _ in range(3)]
        seen = {(each.code, each.reason, "RetryInfo" in each.details) for each in refusals}
        assert {("RESOURCE_EXHAUSTED", "RATE_LIMITED", True)} == seen
        assert others[0] == (await bob.GetConversation(get(others[0]))).id
        assert others[1] == (await eve.GetConversation(get(others[1]))).id
    assert [1] * 4 == [len(each.items) for each in await asyncio.gather(*held)]
    assert locked == (await ann.GetConversation(get(locked))).id
