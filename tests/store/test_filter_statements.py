"""All filters of a list are a few statements, so that no caller can have new ones compiled."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from random import Random
from typing import Any

import pytest
from conversations.v1.conversations_service_pb2 import ListConversationsRequest

from server.store.comparison import EARLIEST, LATEST, Comparison, conversation_filter, item_filter, time_range
from tests.support.build import create, list_items, sets, user_message
from tests.support.service import Service, recorded_statements

MOMENTS = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2)]
MOMENT = "2026-01-01T00:00:00Z"
CONVERSATION_COMPARISONS = [
    'owner = "local"',
    'owner != "ann"',
    'metadata.a = "1"',
    'metadata.b != "2"',
    'attributes.teams = "red"',
    'attributes.teams != "blue"',
    f'create_time > "{MOMENT}"',
    f'create_time >= "{MOMENT}"',
    'create_time < "2100-01-01T00:00:00Z"',
    'create_time <= "2100-01-01T00:00:00Z"',
]
ITEM_COMPARISONS = [
    'type = "message"',
    'type != "reasoning"',
    'role = "user"',
    'role != "system"',
    'status = "completed"',
    'status != "failed"',
    f'create_time > "{MOMENT}"',
    'create_time <= "2100-01-01T00:00:00Z"',
]


def filters(comparisons: list[str]) -> list[str]:
    """Permutations of a few comparisons, and random choices of up to eight, some of them twice."""
    rng = Random(7)
    orders = [" AND ".join(each) for each in permutations(comparisons[1:5])]
    return orders + [" AND ".join(rng.choices(comparisons, k=rng.randint(1, 8))) for _ in range(100)]


async def test_conversations(service: Service) -> None:
    """124 filters of conversations are two statements: with an owner, which has an index, and without."""
    stub = service.stub
    made = await stub.CreateConversation(create(metadata={"a": "1"}, attributes=sets(teams=["red"])))
    with recorded_statements(service.database) as texts:
        for each in filters(CONVERSATION_COMPARISONS):
            page = await stub.ListConversations(ListConversationsRequest(filter=each))
            assert made.id == page.conversations[0].id
    assert len(set(texts)) <= 2


async def test_items(service: Service) -> None:
    """Filters of items are one statement."""
    made = await service.stub.CreateConversation(create(user_message()))
    with recorded_statements(service.database) as texts:
        for each in filters(ITEM_COMPARISONS):
            assert 1 == len((await service.stub.ListItems(list_items(made.id, filter=each))).items)
    assert 1 == len(set(texts))


@pytest.mark.parametrize(
    "comparisons",
    [
        ['owner = "local"', 'owner = "ann"'],
        ['owner = "local"', 'owner != "local"'],
        ['metadata.a = "1"', 'metadata.a = "2"'],
        ['metadata.a = "1"', 'metadata.a != "1"'],
        ['attributes.teams = "red"', 'attributes.teams != "red"'],
        ['attributes.teams = "red"', 'attributes.teams = "green"'],
        ['create_time > "2100-01-01T00:00:00Z"'],
        ['create_time > "9999-12-31T23:59:59.999999Z"'],
        ['create_time < "2100-01-01T00:00:00Z"', 'create_time <= "0001-01-01T00:00:00Z"'],
    ],
)
async def test_what_nothing_can_meet(service: Service, comparisons: list[str]) -> None:
    """Comparisons that contradict each other, or the stored rows, let nothing through."""
    await service.stub.CreateConversation(create(metadata={"a": "1"}, attributes=sets(teams=["red"])))
    request = ListConversationsRequest(filter=" AND ".join(comparisons))
    assert [] == list((await service.stub.ListConversations(request)).conversations)


@pytest.mark.parametrize(
    ("operator", "microseconds", "found"),
    [
        (operator, microseconds, found)
        for operator, wanted in {"<": [1], "<=": [0, 1], ">": [-1], ">=": [-1, 0]}.items()
        for microseconds, found in [(n, n in wanted) for n in (-1, 0, 1)]
    ],
)
async def test_the_edge_of_a_time(service: Service, operator: str, microseconds: int, found: bool) -> None:  # noqa: FBT001
    """Times are compared to the microsecond, in both lists."""
    made = await service.stub.CreateConversation(create(user_message(), metadata={"edge": "1"}))
    moment = made.create_time.ToDatetime(UTC) + timedelta(microseconds=microseconds)
    comparison = f'create_time {operator} "{moment.isoformat()}"'
    page = await service.stub.ListConversations(
        ListConversationsRequest(filter=f'metadata.edge = "1" AND {comparison}', page_size=100)
    )
    assert found == (made.id in [each.id for each in page.conversations])
    assert found == bool((await service.stub.ListItems(list_items(made.id, filter=comparison))).items)


def test_a_range_of_times() -> None:
    """Of several times the narrowest range counts; what is no time does not, and no time overflows."""
    times = [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]

    def compare(*pairs: tuple[str, Any]) -> tuple[datetime, datetime]:
        return time_range([Comparison("create_time", operator, "", value) for operator, value in pairs])

    tick = timedelta(microseconds=1)
    assert (EARLIEST, LATEST) == compare(("=", "text"))
    assert (times[1], times[2]) == compare((">=", times[0]), (">=", times[1]), ("<", times[3]), ("<", times[2]))
    assert (times[1] + tick, times[2] + tick) == compare((">", times[1]), ("<=", times[2]))
    assert (LATEST, LATEST) == compare((">", LATEST), ("<=", LATEST))


UNORDERED: dict[str, list[Comparison]] = {
    "conversations": [
        Comparison("owner", "=", "", "ann"),
        Comparison("owner", "!=", "", "bob"),
        Comparison("metadata", "=", "a", "1"),
        Comparison("metadata", "!=", "b", "2"),
        Comparison("attributes", "!=", "teams", "red"),
    ],
    "items": [
        Comparison("type", "=", "", "message"),
        Comparison("role", "!=", "", "user"),
        Comparison("role", "!=", "", "system"),
        Comparison("status", "=", "", "completed"),
    ],
    "a start": [Comparison("create_time", operator, "", MOMENTS[day]) for operator in (">", ">=") for day in (0, 1)],
    "an end": [Comparison("create_time", operator, "", MOMENTS[day]) for operator in ("<", "<=") for day in (0, 1)],
}


@pytest.mark.parametrize("parameters", [conversation_filter, item_filter])
@pytest.mark.parametrize("comparisons", UNORDERED.values(), ids=UNORDERED)
def test_the_order_of_comparisons(
    parameters: Callable[[Sequence[Comparison]], dict[str, Any]], comparisons: list[Comparison]
) -> None:
    """Comparisons in another order are the same parameters: AND has no order."""
    found = [parameters(each) for each in permutations(comparisons)]
    plain = [{k: sorted(v) if isinstance(v, list) else v for k, v in values.items()} for values in found]
    assert all(each == plain[0] for each in plain)
