"""Policies in SQL: for random policies, callers and hostile rows, statements give what the reference allows."""

from collections.abc import AsyncIterator, Callable, Iterator
from random import Random
from typing import Any

import pytest

from server.authorization import access as store_access
from server.authorization.index_ranges import IndexRanges, index_ranges
from server.policy.plan import Plan
from server.policy.residual import Shares
from server.store.sql import activity, changes, conversations, items, predicate
from tests.support.postgres import fresh_database
from tests.support.proof import TENANT, Mismatch, proof_on

SEED = 2


@pytest.fixture(scope="module")
async def empty(postgres: str, template: str) -> AsyncIterator[str]:
    """A migrated database that nothing else writes to."""
    async with fresh_database(postgres, template) as url:
        yield url


async def test_sql_is_the_reference(empty: str) -> None:
    """Rows, lists, pages, points and items of random worlds; none of the comparisons is of next to nothing."""
    async with proof_on(empty, Random(SEED)) as proof:
        seen = await proof.until(15_000)
    assert [] == seen.problems()
    assert seen.pages >= 100
    assert seen.told.total() >= (100 if seen.keeps_changes else 0)


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Compiled statements do not outlive the mistake that is in them."""
    yield
    for statement in (
        conversations.get,
        conversations.page,
        items.get,
        items.get_batch,
        items.page,
        changes.read,
        activity.page,
    ):
        statement.cache_clear()


def _half_a_cover(plan: Plan) -> IndexRanges | None:
    """A cover that forgets attributes."""
    found = index_ranges(plan)
    return found and IndexRanges(found.owners, frozenset(), found.ids)


def _off_by_one(page: Callable[..., Any]) -> Callable[..., Any]:
    """A page that is cut before it is asked for."""

    async def cut(self: Any, access: Any, shape: Any, position: Any, count: int, **order: bool) -> Any:
        rows, more = await page(self, access, shape, position, count, **order)
        return rows[: max(1, count - 1)], more

    return cut


def _careless(lowered: Callable[..., Any]) -> Callable[..., Any]:
    """Attributes that are all contained where one in common is enough."""

    def contained(residual: Any, names: Any, parameter: Any, owner: Any, attributes: Any, row_id: Any) -> Any:
        made = lowered(residual, names, parameter, owner, attributes, row_id)
        if isinstance(residual, Shares):
            return attributes.op("@>", is_comparison=True)(made.right)
        return made

    return contained


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("broken", ["cover", "page", "operator", "tenant"])
async def test_the_proof_finds_what_is_wrong(empty: str, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Each of these mistakes ends the comparison."""
    match broken:
        case "cover":
            monkeypatch.setattr(store_access, "index_ranges", _half_a_cover)
        case "operator":
            monkeypatch.setattr(predicate, "_to_sql", _careless(predicate._to_sql))
        case "tenant":  # rows of another tenant are stored as the callers' own
            monkeypatch.setattr("tests.support.proof.THEIRS", TENANT)
    async with proof_on(empty, Random(SEED)) as proof:
        if broken == "page":
            monkeypatch.setattr(type(proof._conversations), "page", _off_by_one(type(proof._conversations).page))
        with pytest.raises(Mismatch):
            await proof.until(30_000)
