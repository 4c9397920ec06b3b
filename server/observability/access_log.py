"""The access log: one line for each call, of ids and words; nothing of the content.

A line for every call must cost little. As JSON it is put together here, not by structlog,
and lines are written several at a time: one by one, between other work, each would find the
processor's caches cold, and take several times as long as its neighbours do behind it.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from select import PIPE_BUF
from typing import TypeAlias

import structlog

from server.observability import logs
from server.observability.trace_context import trace_fields
from server.policy.principal import Principal, current_principal

log = structlog.get_logger(__name__, log="access")

_FAULTS = frozenset(("INTERNAL", "UNKNOWN", "DATA_LOSS"))  # ours, never the caller's
_STRANGER = Principal("", "")  # of a call that was refused before anybody knew whose it was
_SECONDS = 0.05  # from a call's end to its line, at most
_Call: TypeAlias = tuple[float, str, str, str, float, Principal, str, dict[str, str]]
_encode = json.JSONEncoder().encode  # of a string it is quick


class AccessLog:
    """Writes the lines.

    Args:
        always: A line for each call, else only at level debug.
    """

    def __init__(self, *, always: bool) -> None:
        self._always = always
        self._process = _members(structlog.contextvars.get_contextvars())  # which of several
        self._second, self._time = 0, ""  # of the last line
        self._calls: list[_Call] = []  # whose lines are to be written
        self._writing: asyncio.Task[None] | None = None

    def is_on(self) -> bool:
        """Whether any call would have a line now."""
        return logs.is_logged("warning" if self._always else "debug")

    def severity(self, code: str) -> str | None:
        """The level of a call's line; None when there is none."""
        severity = "debug"
        if self._always:
            severity = "warning" if code in _FAULTS else "info"
        return severity if logs.is_logged(severity) else None

    def write(self, severity: str, method: str, code: str, seconds: float, peer: str) -> None:
        """The line of a call that has ended; soon."""
        who = current_principal.get(_STRANGER)
        milliseconds = round(seconds * 1e3, 3)
        kind = peer.partition(":")[0]  # ipv4, ipv6 or unix; the address is nobody's business here
        if not logs.is_json():
            words = {"principal": logs.escaped(who.id), "tenant": logs.escaped(who.tenant), "peer": kind}
            with suppress(OSError):  # a log that cannot be written fails no call
                getattr(log, severity)("call", method=method, code=code, ms=milliseconds, **words)
            return
        self._calls.append((time.time(), severity, method, code, milliseconds, who, kind, trace_fields()))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        try:
            await asyncio.sleep(_SECONDS)
        finally:  # also when the loop ends
            self._writing = None
            calls, self._calls = self._calls, []
            with suppress(OSError):
                for text in _in_pieces(self._line(call) for call in calls):
                    sys.stderr.write(text)

    def _line(self, call: _Call) -> str:
        """As structlog would write it."""
        now, severity, method, code, milliseconds, who, kind, trace = call
        return (
            f'{{"log": "access", "event": "call", "level": "{severity}", "timestamp": "{self._iso(now)}", '
            f'"method": "{method}", "code": "{code}", "ms": {milliseconds}, '
            f'"principal": {_encode(logs.escaped(who.id))}, "tenant": {_encode(logs.escaped(who.tenant))}, '
            f'"peer": "{kind}"{_members(trace)}{self._process}}}\n'
        )

    def _iso(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second, self._time = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._time}.{int((now - second) * 1e6):06}Z"


def _in_pieces(lines: Iterable[str]) -> Iterator[str]:
    """Whole lines, together as long as a pipe takes at once: the lines of several processes must not mix."""
    piece = ""
    for line in lines:
        if piece and len(piece) + len(line) > PIPE_BUF:  # all of it is ASCII
            yield piece
            piece = ""
        piece += line
    yield piece


def _members(fields: Mapping[str, object]) -> str:
    """More members of a JSON object."""
    return "".join([f', "{name}": {_encode(value)}' for name, value in fields.items()])
