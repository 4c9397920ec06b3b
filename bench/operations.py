"""What the workloads prepare, and what one operation does.

A *subject* is a conversation, or items of one: ``conversation/item`` or
``conversation/item,item``. A prepared workload has a subject for each caller or
for each operation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from math import ceil
from typing import TypeVar

from bench.target import Target

BATCH = 20  # items of the largest append
_STORED = 100  # items of the conversation that single items are read from
_AT_ONCE = 32  # conversations that are prepared concurrently; many more would exceed the limits of the service
Prepare = Callable[[Target, int], Awaitable[list[str]]]  # returns the subjects, for a number of callers or operations
Operation = Callable[[Target, str, int], Awaitable[object]]  # takes a subject and the number of the operation
T = TypeVar("T")


async def _all(makers: Iterable[Awaitable[T]]) -> list[T]:
    """Awaits all makers, a few at a time, and returns their results in order."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def made(maker: Awaitable[T]) -> T:
        async with free:
            return await maker

    return await asyncio.gather(*map(made, makers))


async def filled(target: Target, count: int) -> tuple[str, list[str]]:
    """A conversation of ``count`` items, and the ids of those that the target named."""
    conversation = await target.create()
    names: list[str] = []
    for start in range(0, count, BATCH):
        names += await target.append(conversation, min(BATCH, count - start)) or ()
    return conversation, names


def none() -> Prepare:
    """Prepares nothing: each operation creates its own conversation."""

    async def prepare(_target: Target, _callers: int) -> list[str]:
        return [""]

    return prepare


def own(items: int, most: int | None = None) -> Prepare:
    """Prepares a conversation of ``items`` for each caller, or ``most`` conversations that the callers share."""

    async def prepare(target: Target, callers: int) -> list[str]:
        made = await _all(filled(target, items) for _ in range(min(callers, most or callers)))
        return [conversation for conversation, _ in made]

    return prepare


def stored(count: int) -> Prepare:
    """Prepares one conversation of 100 items; a caller's subject are ``count`` of them, others for each caller."""

    async def prepare(target: Target, callers: int) -> list[str]:
        conversation, names = await filled(target, _STORED)
        starts = (number * count % _STORED for number in range(callers))
        return [f"{conversation}/{','.join(names[start : start + count])}" for start in starts]

    return prepare


async def each_item(target: Target, operations: int) -> list[str]:
    """Prepares an item for each operation, in conversations of 20 items."""
    made = await _all(filled(target, BATCH) for _ in range(ceil(operations / BATCH)))
    return [f"{conversation}/{name}" for conversation, names in made for name in names][:operations]


async def create(target: Target, _subject: str, _number: int) -> None:
    """Creates an empty conversation."""
    await target.create()


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


async def get(target: Target, conversation: str, _number: int) -> None:
    """Reads the conversation without its items."""
    await target.get(conversation)


async def get_item(target: Target, subject: str, _number: int) -> None:
    """Reads one item."""
    await target.get_item(*subject.split("/"))


async def get_items(target: Target, subject: str, _number: int) -> None:
    """Reads the items of the subject in one call, and checks that all were returned."""
    conversation, names = subject.split("/")
    items = names.split(",")
    assert await target.get_items(conversation, items) == len(items)


async def check_access(target: Target, conversation: str, _number: int) -> None:
    """Asks for permissions on the conversation, and checks that the caller has them."""
    assert await target.check_access(conversation)


async def update(target: Target, conversation: str, number: int) -> None:
    """Replaces the metadata by another value each time."""
    await target.update(conversation, {"topic": "bench", "number": str(number)})


async def delete(target: Target, conversation: str, _number: int) -> None:
    """Deletes the conversation, which was prepared for this operation."""
    await target.delete(conversation)


async def delete_item(target: Target, subject: str, _number: int) -> None:
    """Deletes the item, which was prepared for this operation."""
    await target.delete_item(*subject.split("/"))
