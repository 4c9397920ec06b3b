"""Measures the ways to write the access log beside each other.

``PYTHONPATH=.:generated python -m bench.access_log``: CPU time per line, the minimum of several rounds in which the
variants take turns, with lines written to a file as in a server. "Warm" writes lines one after the other. "Cold" does
other work between two lines, which leaves the processor's caches as a server's calls do; that work is not counted.
Variants whose serializer is not installed (``pip install orjson msgspec``) are left out.
"""

import asyncio
import importlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import structlog

from server.observability import logs
from server.observability.access_log import AccessLog
from server.observability.call_context import begin_call, current_call
from server.observability.trace_context import trace_fields
from server.policy.principal import Principal, current_principal

LINES, ROUNDS = 2_000, 9
METHOD = "/conversations.v1.ConversationsService/GetConversation"
PEER = "ipv4:127.0.0.1:40000"
OTHER_WORK = bytes(range(256)) * 8192  # 2 MiB, as large as a second-level cache

ENCODE = json.JSONEncoder().encode
Serializer: TypeAlias = Callable[..., Any]
Writer: TypeAlias = Callable[[], None]


def serializers() -> dict[str, Serializer]:
    """The serializers that are installed, by name."""
    found: dict[str, Serializer] = {"json": lambda event, **_: ENCODE(event).encode()}
    with suppress(ImportError):
        found["orjson"] = importlib.import_module("orjson").dumps
    with suppress(ImportError):
        encode = importlib.import_module("msgspec").json.Encoder().encode
        found["msgspec"] = lambda event, **_: encode(event)  # structlog passes `default`
    return found


def hand_made() -> Writer:
    """The writer of the service: lines put together by hand, and written in groups."""
    log = AccessLog(always=True)
    return lambda: log.write("info", "OK", 0.001204)


def fields() -> dict[str, Any]:
    """The fields of a line that structlog does not add."""
    call, who = current_call.get(), current_principal.get()
    assert call
    return {
        "call": call.id,
        "method": call.method,
        "code": "OK",
        "ms": round(0.001204 * 1e3, 3),
        "principal": logs.escaped(who.id),
        "tenant": logs.escaped(who.tenant),
        "peer": logs.escaped(call.peer),
        **trace_fields(),
    }


def with_structlog(logger: Any, serializer: Serializer) -> Writer:
    """The writer of structlog with no more processors than the line needs."""
    log = structlog.wrap_logger(
        logger,
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.JSONRenderer(serializer=serializer),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        cache_logger_on_first_use=True,
    ).bind(log="access")
    return lambda: log.info("call", **fields())


class Group:
    """A logger that keeps lines for a twentieth of a second and writes them together."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self._writing: asyncio.Task[None] | None = None

    def info(self, line: bytes) -> None:
        """Keeps a line."""
        self._lines.append(line)
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        await asyncio.sleep(0.05)
        self._writing = None
        lines, self._lines = self._lines, []
        sys.stderr.buffer.write(b"\n".join(lines) + b"\n")
        sys.stderr.buffer.flush()


def without_structlog(serializer: Serializer) -> Writer:
    """A dictionary and a serializer, written in groups."""
    group = Group()

    def write() -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        group.info(serializer({"log": "access", "event": "call", "level": "info", "timestamp": now, **fields()}))

    return write


def variants() -> dict[str, Writer]:
    """The writers by name; the first does nothing."""
    made: dict[str, Writer] = {"nothing": lambda: None, "hand-made, in groups": hand_made()}
    made["structlog as configured, json"] = lambda: structlog.get_logger(log="access").info("call", **fields())
    for name, serializer in serializers().items():
        made[f"structlog, BytesLogger, {name}"] = with_structlog(structlog.BytesLogger(sys.stderr.buffer), serializer)
        made[f"structlog, in groups, {name}"] = with_structlog(Group(), serializer)
        made[f"no structlog, in groups, {name}"] = without_structlog(serializer)
    return made


async def microseconds(write: Writer, *, cold: bool) -> float:
    """CPU time per line, with what is written later."""
    began = time.process_time()
    for index in range(LINES):
        write()
        if cold:
            OTHER_WORK[::64]  # reads every cache line
        if not index % 50:
            await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    return (time.process_time() - began) / LINES * 1e6


async def measure() -> dict[str, tuple[float, float]]:
    """The least CPU time of each variant above that of doing nothing, warm and cold."""
    current_principal.set(Principal("acme", "alice"))
    begin_call(METHOD, PEER)
    writers = variants()
    least = {(name, cold): float("inf") for name in writers for cold in (False, True)}
    for _ in range(ROUNDS):
        for (name, cold), found in least.items():
            least[name, cold] = min(found, await microseconds(writers[name], cold=cold))
    return {
        name: (least[name, False] - least["nothing", False], least[name, True] - least["nothing", True])
        for name in list(writers)[1:]
    }


def main() -> None:
    """Prints the figures."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        with path.open("w", encoding="utf-8") as file, redirect_stderr(file):
            logs.configure("info", "json")
            found = asyncio.run(measure())
    print(f"{'µs a line':36} {'warm':>6} {'cold':>6}")
    for name, (warm, cold) in found.items():
        print(f"{name:36} {warm:6.2f} {cold:6.2f}")


if __name__ == "__main__":
    main()
