"""Uses the service as a Python client does, and says after each step that it went well."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial

from conversations_client import connect

from tests.interop.python.lifecycle_steps import LifecycleSteps
from tests.interop.python.restart import restart
from tests.interop.python.scenario import Scenario
from tests.interop.python.watch_steps import WatchSteps


async def main() -> None:
    """Runs all steps; the first that fails ends the program."""
    async with connect(os.environ["TARGET"]) as client, connect(os.environ["SCRIPTED"]) as scripted:
        scenario = Scenario(client.conversations, os.environ["LOCKED"])
        lifecycle = LifecycleSteps(scenario, client)
        await run(steps(scenario, lifecycle, WatchSteps(scenario, client.watches, scripted.watches)))


def steps(
    scenario: Scenario, lifecycle: LifecycleSteps, watches: WatchSteps
) -> dict[str, Callable[[], Awaitable[None]]]:
    """The steps by their names, in order."""
    return {
        "create": scenario.create,
        "append": scenario.append,
        "pages": scenario.pages,
        "etag": scenario.etag,
        "not_found": scenario.not_found,
        "denied": scenario.denied,
        "deadline": scenario.deadline,
        "stream": scenario.stream,
        "retention": lifecycle.retention,
        "rewind": lifecycle.rewind,
        "fork": lifecycle.fork,
        "undelete": lifecycle.undelete,
        "delete_many": lifecycle.delete_many,
        "transfer": lifecycle.transfer,
        "restart": partial(restart, scenario),
        "watch": watches.watch,
        "watch_reset": watches.watch_reset,
        "watch_refused": watches.watch_refused,
        "watch_silence": watches.watch_silence,
        "watch_ends": watches.watch_ends,
        "watch_restart": watches.watch_restart,
    }


async def run(named: dict[str, Callable[[], Awaitable[None]]]) -> None:
    """Runs the steps, and prints a line after each."""
    for name, step in named.items():
        await step()
        print("ok", name, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
