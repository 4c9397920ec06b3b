"""What is measured, as a table: what is made ready, what one operation is, and how many there are in a round."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from math import ceil

from bench.target import Target

BATCH = 20  # items of the largest append
Prepare = Callable[[Target, int], Awaitable[list[str]]]  # conversations, for so many callers or operations
Operation = Callable[[Target, str, int], Awaitable[object]]  # on a conversation, the n-th of its caller


@dataclass(frozen=True)
class Workload:
    """Operations of one kind; caller c works on the c-th conversation that was prepared, going round."""

    name: str
    operation: Operation
    operations: int  # per round, by all callers together
    callers: int
    prepare: Prepare
    kept: bool = False  # prepared once and used in every round
    each: bool = False  # a conversation for every operation, not for every caller
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
        """The same with a share of the operations, at least one for each caller."""
        return replace(self, operations=max(1, round(self.operations * pace)))

    async def ready(self, target: Target) -> list[str]:
        """The conversations it works on."""
        return await self.prepare(target, self.count if self.each else self.callers)


async def filled(target: Target, count: int) -> str:
    """A conversation of ``count`` items."""
    conversation = await target.create()
    for start in range(0, count, BATCH):
        await target.append(conversation, min(BATCH, count - start))
    return conversation


def none() -> Prepare:
    """Nothing: the operation makes its own."""

    async def prepare(_target: Target, _callers: int) -> list[str]:
        return [""]

    return prepare


def own(items: int, most: int | None = None) -> Prepare:
    """A conversation of ``items`` for each caller, or ``most`` conversations that the callers share."""

    async def prepare(target: Target, callers: int) -> list[str]:
        return await asyncio.gather(*(filled(target, items) for _ in range(min(callers, most or callers))))

    return prepare


def append(count: int) -> Operation:
    """Appends ``count`` items."""
    return lambda target, conversation, _: target.append(conversation, count)


def newest(expected: int = BATCH) -> Operation:
    """Reads the newest items, all of which have to come."""

    async def operation(target: Target, conversation: str, _: int) -> None:
        assert await target.newest(conversation) == expected

    return operation


def page(expected: int) -> Operation:
    """Reads every item, all of which have to come."""

    async def operation(target: Target, conversation: str, _: int) -> None:
        assert await target.page(conversation) == expected

    return operation


async def mixed(target: Target, conversation: str, number: int) -> None:
    """Four reads, then an append."""
    if number % 5 == 4:
        await target.append(conversation, 1)
    else:
        assert await target.newest(conversation) == BATCH


def table(callers: int = 32, long: int = 10_000, share: float = 1.0) -> list[Workload]:
    """The workloads; a ``share`` of the operations, and ``long`` items in a long conversation, make a quick run."""
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
    """Deletes the conversation, which is the operation's own."""
    await target.delete(conversation)


def growth(callers: int = 32, long: int = 10_000) -> list[tuple[str, str]]:
    """Which workloads differ only in the length of the conversation: the short one, and the long one."""
    few = min(8, callers)
    return [
        (f"append 1, {few} callers", f"append 1 to {long:,}, {few} callers"),
        ("newest 20 of 100", f"newest 20 of {long:,}"),
    ]
