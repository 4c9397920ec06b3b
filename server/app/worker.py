"""A worker: one of several processes on the same address. `server.app.supervisor` describes the protocol."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from server.observability import lean_structlog  # noqa: F401 - before the modules that log

# isort: split
import structlog

from server.app.service import run_service
from server.errors import OperatorError, ServiceError
from server.observability import logs
from server.settings.service import Settings, load

log = structlog.get_logger(__name__)

Report: TypeAlias = Callable[[str | None], None]  # None: the worker serves; a text: why it cannot


def main() -> None:
    """Runs ``python -m server.app.worker NUMBER``, as the supervisor starts it."""
    import uvloop  # noqa: PLC0415 - for the process that runs, not for one that only imports this module

    report = _open_report()
    startup_message = sys.stdin.buffer.readline()
    if not startup_message:
        return  # the supervisor has ended already
    settings = load(**json.loads(startup_message))
    number = int(sys.argv[1])
    logs.configure(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=number)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, number, report))
    except (OperatorError, ServiceError, OSError) as error:
        report(str(error))
        sys.exit(1)


def _open_report() -> Report:
    """Returns what writes lines to the supervisor; from now on anything else printed goes to standard error."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def report(problem: str | None) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(problem), file=output, flush=True)

    return report


async def _serve(settings: Settings, number: int, report: Report) -> None:
    """Serves until SIGTERM, or until the supervisor ends."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is a policy to reload

    def stop_as_orphan() -> None:
        log.warning("the parent is gone")
        loop.remove_reader(0)
        stop.set()

    loop.add_reader(0, stop_as_orphan)  # nothing follows the first line: what can be read is the end
    async with run_service(settings, worker=number) as running:
        loop.add_signal_handler(signal.SIGHUP, running.reload)
        report(None)
        await stop.wait()


if __name__ == "__main__":
    main()
