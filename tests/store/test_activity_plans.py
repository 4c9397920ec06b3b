"""The plans of lists by activity."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from bench.list_cost import fill
from server.authorization.access import AccessCache
from server.policy.load import load
from server.policy.principal import Principal
from server.policy.rules import DEFAULT, Policy
from server.store.comparison import Comparison
from server.store.connection.bounds import Bounds
from server.store.connection.database import Database
from server.store.connection.execution import Execute, Execution, Rows
from server.store.conversations import ConversationStore
from tests.support.database import verified_database
from tests.support.postgres import fresh_database
from tests.support.service import intercepted

EVERYBODY = load("- permit: {actions: [read]}\n")
TEAMS = Principal(tenant="", id="me", attributes={"teams": frozenset({"mine", "team-1"})})
LISTS: dict[str, tuple[Policy, tuple[Comparison, ...]]] = {
    "ranges": (DEFAULT, ()),
    "tenant": (EVERYBODY, ()),
    "owner": (EVERYBODY, (Comparison("owner", "=", "", "me"),)),
    "forks": (EVERYBODY, (Comparison("forked_from", "=", "", "conv_1"),)),
}


async def plan_of(database: Database, name: str) -> list[tuple[str, str]]:
    """The nodes of the plan of a list, and the indexes that they read."""
    policy, comparisons = LISTS[name]
    store, access, sent = ConversationStore(database, 2**20), AccessCache(policy).of(TEAMS), []

    async def keep(execute: Execute, execution: Execution) -> Rows:
        sent.append((execution.statement.text, execution.arguments[0]))
        return await execute(execution)

    with intercepted(database, keep):
        await store.page(access, comparisons, None, 20, descending=True, by_activity=True)
    ((text, arguments),) = sent
    async with database.pool.acquire() as connection:
        plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}", *arguments))
    return [(node["Node Type"], node.get("Index Name", "")) for node in nodes(plan[0]["Plan"])]


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All nodes of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize("name", LISTS)
async def test_plans_do_not_depend_on_statistics(postgres: str, template: str, name: str) -> None:
    """The plan of an empty table is that of a small one and of a large one, with statistics and without."""
    async with fresh_database(postgres, template) as url:
        plans = []
        for rows, statement in ((0, "SELECT"), (30, "SELECT"), (30, "ANALYZE"), (5000, "SELECT"), (5000, "ANALYZE")):
            if rows:
                await fill(url, rows, analyzed=statement == "ANALYZE")
            async with verified_database(url, 2, Bounds(), unsafe_durability=False) as database:
                plans.append(await plan_of(database, name))
    assert [plans[0]] * 5 == plans
    indexes = {index for _, index in plans[0] if index}
    assert EXPECTED_INDEXES[name] == indexes
    assert "Seq Scan" not in {kind for kind, _ in plans[0]}


EXPECTED_INDEXES = {
    "ranges": {"activity_by_owner", "conversation_attributes_by_activity", "conversations_pkey", "activity_pkey"},
    "tenant": {"activity_by_tenant", "conversations_pkey"},
    "owner": {"activity_by_owner", "conversations_pkey"},
    "forks": {"conversations_by_source", "conversations_pkey", "activity_pkey"},
}
