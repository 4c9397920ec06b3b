"""Calls that go on while the server restarts."""

import asyncio
import sys

from tests.interop.python.scenario import Scenario, ids

WORKERS = 4
AFTER = 20  # calls of each kind after the restart


async def restart(scenario: Scenario) -> None:
    """No call may fail, and no append may be lost or duplicated; only the service config retries."""
    before = await scenario.all_items()
    answered = await work_through("restart?", scenario)
    stored = await scenario.all_items()
    assert sorted(answered) == sorted(ids(stored[len(before) :]))  # finds items that are lost, duplicated or foreign


async def work_through(ask: str, scenario: Scenario) -> list[str]:
    """Asks for a restart, and calls until it has been over for a while.

    Returns the ids of the items whose append was answered.
    """
    print(ask, flush=True)
    back = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    answered = await asyncio.gather(*(_work(scenario, back) for _ in range(WORKERS)))
    return [each for found in answered for each in found]


async def _work(scenario: Scenario, back: "asyncio.Task[str]") -> list[str]:
    appended = []
    left = AFTER
    while left:
        left -= back.done()
        await scenario.read()
        appended.append((await scenario.append_one("still there?")).id)
    return appended
