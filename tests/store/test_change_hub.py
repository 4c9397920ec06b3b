"""Who follows a conversation is woken by every change, whoever made it and whoever sees it first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from server.errors import StoreUnavailable
from server.store import change_hub, poller
from server.store.change_hub import ChangeHub, Subscription


class Versions:
    """A database that tells the versions of conversations that differ.

    Attributes:
        now: The versions, by id.
        fails: Whether it cannot be used.
    """

    def __init__(self, **now: int) -> None:
        self.now: dict[str, int | None] = dict(now)
        self.fails = False
        self.polls = 0

    async def fetch(self, _statement: Any, values: dict[str, Any]) -> list[dict[str, Any]]:
        """As the statement of the poll."""
        self.polls += 1
        if self.fails:
            raise StoreUnavailable
        seen = zip(values["ids"], values["versions"], strict=True)
        return [{"id": name, "version": self.now[name]} for name, version in seen if self.now[name] != version]


@asynccontextmanager
async def polled(hub: ChangeHub, versions: Versions) -> AsyncIterator[None]:
    """Polls meanwhile."""
    task = asyncio.create_task(hub.poll_forever(versions))  # type: ignore[arg-type]
    yield
    task.cancel()


async def is_woken(subscription: Subscription, seconds: float = 0.02) -> bool:
    """Whether it is woken within some time; it is armed again then."""
    await subscription.wait(seconds)
    woken = subscription.is_set
    subscription.arm()
    return woken


async def test_writes_of_this_process() -> None:
    """They wake all who follow that conversation, and nobody else."""
    hub = ChangeHub()
    with hub.subscribe("a") as one, hub.subscribe("a") as two, hub.subscribe("b") as other:
        hub.note_change("a")
        hub.note_change("nobody's")
        assert [await is_woken(each) for each in (one, two, other)] == [True, True, False]


async def test_a_change_between_arming_and_waiting() -> None:
    """It is not lost: what happens during a read is one more read."""
    hub = ChangeHub()
    with hub.subscribe("a") as one:
        one.arm()
        hub.note_change("a")
        assert await is_woken(one)


async def test_writes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A poll wakes those whose conversation has another version, once, and those whose row is gone."""
    monkeypatch.setattr(change_hub, "POLL_SECONDS", 0.01)
    hub, versions = ChangeHub(), Versions(a=1, b=1)
    async with polled(hub, versions):
        with hub.subscribe("a") as one, hub.subscribe("b") as other:
            for each in (one, other):
                each.note_version(1)
            assert not await is_woken(one, 0.05)
            versions.now["a"] = 2
            assert await is_woken(one, 1)
            assert not await is_woken(one, 0.05)
            assert not await is_woken(other)
            versions.now["b"] = None
            assert await is_woken(other, 1)


async def test_whoever_sees_a_new_version_wakes_the_others() -> None:
    """The poll does not tell of it again."""
    hub = ChangeHub()
    with hub.subscribe("a") as one, hub.subscribe("a") as two:
        one.note_version(1)
        for each in (one, two):
            each.arm()
        two.note_version(2)
        assert [await is_woken(one), await is_woken(two)] == [True, False]
        one.note_version(2)
        assert not await is_woken(two)


async def test_a_poll_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, and its age says how long nobody could be told."""
    monkeypatch.setattr(change_hub, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(poller, "_RETRY_SECONDS", (0.01, 0.02))
    hub, versions = ChangeHub(), Versions(a=1)
    async with polled(hub, versions):
        with hub.subscribe("a") as one:
            one.note_version(1)
            versions.fails = True
            await asyncio.sleep(0.2)
            assert hub.poll_age > 0.1
            assert versions.polls > 2
            versions.fails, versions.now["a"] = False, 2
            assert await is_woken(one, 1)
            assert hub.poll_age < 0.1


async def test_nobody_is_left() -> None:
    """What is not followed any more is forgotten, and not polled."""
    hub, versions = ChangeHub(), Versions(a=1)
    with hub.subscribe("a") as one:
        one.note_version(1)
        assert hub.count == 1
    assert (hub.count, hub.poll_age) == (0, 0.0)
    async with polled(hub, versions):
        await asyncio.sleep(0.05)
    assert versions.polls == 0
