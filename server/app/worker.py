"""One of several processes on an address."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

import structlog

from server.app.service import run_service
from server.errors import OperatorError, ServiceError
from server.observability import logs
from server.settings.service import Settings, load

log = structlog.get_logger(__name__)


def main() -> None:
    """``python -m server.app.worker NUMBER``, as the supervisor runs it."""
    import uvloop  # noqa: PLC0415 - the parent has its own way to it

    say = _voice()
    job = sys.stdin.buffer.readline()
    if not job:
        return  # the parent is gone already
    settings = load(**json.loads(job))
    number = int(sys.argv[1])
    logs.configure(settings.log_level, settings.log_format)
    structlog.contextvars.bind_contextvars(worker=number)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_work(settings, number, say))
    except (OperatorError, ServiceError, OSError) as error:
        say(str(error))
        sys.exit(1)


def _voice() -> Callable[[str | None], None]:
    """Writes lines to the parent; whatever else is printed goes to standard error."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(words: str | None) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(words), file=output, flush=True)

    return say


async def _work(settings: Settings, number: int, say: Callable[[str | None], None]) -> None:
    """Serves until SIGTERM or the end of the parent."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for ending in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(ending, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # until there is a policy to reload

    def orphaned() -> None:
        log.warning("the parent is gone")
        loop.remove_reader(0)
        stop.set()

    loop.add_reader(0, orphaned)  # nothing more is sent: what can be read is the end
    async with run_service(settings, worker=number) as running:
        loop.add_signal_handler(signal.SIGHUP, running.reload)
        say(None)
        await stop.wait()


if __name__ == "__main__":
    main()
