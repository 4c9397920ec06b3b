"""The workloads as a table: what is prepared, what one operation does, and how many operations a round has."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from math import ceil

from bench.target import Target

BATCH = 20  # items of the largest append
Prepare = Callable[[Target, int], Awaitable[list[str]]]  # returns conversations, for a number of callers or operations
Operation = Callable[[Target, str, int], Awaitable[object]]  # takes a conversation and a number


@dataclass(frozen=True)
class Workload:
    """Operations of one kind; callers take the prepared conversations in turn."""

    name: str
    operation: Operation
    operations: int  # per round, by all callers together
    callers: int
    prepare: Prepare
    kept: bool = False  # prepared once and used in every round
    each: bool = False  # one conversation for each operation instead of each caller
    audited: bool = False

    @property
    def share(self) -> int:
        """Operations of one caller."""
        return ceil(self.operations / self.callers)

    @property
    def count(self) -> int:
        """Operations in a round, the same for every caller."""
        return self.share * self.callers

    def paced(self, pace: float) -> "Workload":
        """Returns the workload with a share of its operations, at least one for each caller."""
        return replace(self, operations=max(1, round(self.operations * pace)))

    async def ready(self, target: Target) -> list[str]:
        """Prepares the conversations of the workload."""
        return await self.prepare(target, self.count if self.each else self.callers)


async def filled(target: Target, count: int) -> str:
    """A conversation of ``count`` items."""
    conversation = await target.create()
    for start in range(0, count, BATCH):
        await target.append(conversation, min(BATCH, count - start))
    return conversation


def none() -> Prepare:
    """Prepares nothing: each operation creates its own conversation."""

    async def prepare(_target: Target, _callers: int) -> list[str]:
        return [""]

    return prepare


def own(items: int, most: int | None = None) -> Prepare:
    """Prepares a conversation of ``items`` for each caller, or ``most`` conversations that the callers share."""

    async def prepare(target: Target, callers: int) -> list[str]:
        return await asyncio.gather(*(filled(target, items) for _ in range(min(callers, most or callers))))

    return prepare


def append(count: int) -> Operation:
    """Appends ``count`` items."""
    return lambda target, conversation, _: target.append(conversation, count)


def newest(expected: int = BATCH) -> Operation:
    """Reads the newest items and checks that all were returned."""

    async def operation(target: Target, conversation: str, _: int) -> None:
        assert await target.newest(conversation) == expected

    return operation


def page(expected: int) -> Operation:
    """Reads every item and checks that all were returned."""

    async def operation(target: Target, conversation: str, _: int) -> None:
        assert await target.page(conversation) == expected

    return operation


async def mixed(target: Target, conversation: str, number: int) -> None:
    """Reads four times, then appends."""
    if number % 5 == 4:
        await target.append(conversation, 1)
    else:
        assert await target.newest(conversation) == BATCH


def table(callers: int = 32, long: int = 10_000, share: float = 1.0) -> list[Workload]:
    """Returns the workloads; a small ``share`` of the operations and few ``long`` items make a quick run."""
    few, one = min(8, callers), own(100, most=1)

    def some(operations: int) -> int:
        return max(1, round(operations * share))

    return [
        Workload("create", lambda target, *_: target.create(), some(2400), callers, none()),
        Workload("append 1", append(1), some(2400), callers, own(0)),
        Workload("append 1, 1 caller", append(1), some(600), 1, own(0)),
        Workload(f"append 1, {few} callers", append(1), some(1600), few, own(0)),
        Workload(f"append 1 to {long:,}, {few} callers", append(1), some(1600), few, own(long), kept=True),
        Workload("append 20", append(BATCH), some(800), callers, own(0)),
        Workload("newest 20 of 100", newest(), some(1600), callers, one, kept=True),
        Workload(f"newest 20 of {long:,}", newest(), some(1600), callers, own(long, most=1), kept=True),
        Workload(f"page through {long:,}", page(long), some(8), min(4, callers), own(long, most=1), kept=True),
        Workload("get", lambda target, conversation, _: target.get(conversation), some(2400), callers, one, kept=True),
        Workload("delete 1,000", delete, some(32), callers, own(1000), each=True),
        Workload(f"{callers} appenders, 1 conversation", append(1), some(1600), callers, own(0, most=1), audited=True),
        Workload("80 % newest 20, 20 % append 1", mixed, some(1600), callers, own(100)),
    ]


async def delete(target: Target, conversation: str, _: int) -> None:
    """Deletes the conversation, which was prepared for this operation."""
    await target.delete(conversation)


def growth(callers: int = 32, long: int = 10_000) -> list[tuple[str, str]]:
    """Pairs of workloads that differ only in the length of the conversation: short, then long."""
    few = min(8, callers)
    return [
        (f"append 1, {few} callers", f"append 1 to {long:,}, {few} callers"),
        ("newest 20 of 100", f"newest 20 of {long:,}"),
    ]
