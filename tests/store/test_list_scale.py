"""Lists of a caller who sees few of many conversations read what the caller sees, not the table."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench.list_cost import CALLERS, fill
from server.authorization.access import AccessCache
from server.policy.load import load
from server.policy.principal import Principal
from server.policy.rules import DEFAULT, Policy
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.execution import Execute, Execution, Rows
from server.store.conversations import ConversationStore
from tests.support.activity import settled
from tests.support.database import verified_database
from tests.support.plans import nodes
from tests.support.postgres import fetch, fresh_database
from tests.support.service import intercepted, recorded_statements

ROWS = 20_000
PAGE = 20
MAX_BATCH = (PAGE + 1) * 101  # a page from the range of each value that the caller has
BY_TEAM_ONLY = load("- permit: {actions: [read]}\n  when: user in owners teams\n")
EVERYBODY = load("- forbid: {actions: [delete], resource: '*'}\n- permit: {actions: [read]}\n")
ACTIVE = "UPDATE conversations SET active_time = create_time + hashtext(id) % 1000000 * interval '1 s'"
ORDERS = {
    "newest": {"descending": True},
    "oldest": {"descending": False},
    "active": {"descending": True, "by_activity": True},
}
SHARED = Principal(tenant="", id="x", attributes={"teams": frozenset(f"team-{n}" for n in range(100))})


@pytest.fixture(scope="module")
async def large(postgres: str, template: str) -> AsyncIterator[Database]:
    """A database with many conversations."""
    async with fresh_database(postgres, template) as url:
        await fill(url, ROWS)
        await fetch(url, ACTIVE, "INSERT INTO pending SELECT id FROM conversations", "VACUUM ANALYZE")
        await settled(url)
        async with verified_database(url, 2, Bounds(), unsafe_durability=False) as database:
            yield database


@pytest.mark.parametrize(
    ("policy", "principal", "expected"),
    [
        pytest.param(DEFAULT, CALLERS["by owner"], PAGE, id="owner"),
        pytest.param(DEFAULT, CALLERS["by team"], PAGE, id="team"),
        pytest.param(DEFAULT, CALLERS["by owner or team"], PAGE + 1, id="owner or team"),
        pytest.param(BY_TEAM_ONLY, SHARED, PAGE + 1, id="a hundred teams"),
        pytest.param(EVERYBODY, SHARED, PAGE + 1, id="everything"),
    ],
)
@pytest.mark.parametrize("order", ORDERS)
async def test_a_list_reads_what_the_caller_sees(
    large: Database, policy: Policy, principal: Principal, expected: int, order: str
) -> None:
    """One statement, from indexes only, with a number of rows that does not depend on the table's."""
    store, access = ConversationStore(large, 2**20), AccessCache(policy).of(principal)
    sent: list[tuple[Any, ...]] = []

    async def keep(execute: Execute, execution: Execution) -> Rows:
        sent.append(execution.arguments[0])
        return await execute(execution)

    with intercepted(large, keep), recorded_statements(large) as texts:
        rows, _ = await store.page(access, (), None, PAGE + 1, **ORDERS[order])
    assert (expected, 1) == (len(rows), len(texts))
    async with large.pool.acquire() as connection:
        explained = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {texts[0]}", *sent[0])
    plan = list(nodes(json.loads(explained)[0]["Plan"]))
    assert [] == [node["Node Type"] for node in plan if node["Node Type"] == "Seq Scan"]
    assert max(node["Actual Rows"] * node["Actual Loops"] for node in plan) <= MAX_BATCH < ROWS
