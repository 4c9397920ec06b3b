"""The access log: one line for each call, without anything of its content.

As JSON, lines are formatted here and written in groups, because structlog takes two to three
times as long for a line (ADR 21).
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
from server.observability.call_context import CallContext, current_call
from server.observability.trace_context import trace_fields
from server.policy.principal import Principal, current_principal

log = structlog.get_logger(__name__, log="access")

_FAULTS = frozenset(("INTERNAL", "UNKNOWN", "DATA_LOSS"))  # codes that no mistake of a caller can cause
_UNAUTHENTICATED = Principal("", "")  # of a call that was refused before it was authenticated
_FLUSH_SECONDS = 0.05  # the longest time between the end of a call and its line
# Time, severity, call, code, milliseconds, principal, trace and other fields.
_Call: TypeAlias = tuple[float, str, CallContext, str, float, Principal, Mapping[str, object]]
_NOTHING: Mapping[str, object] = {}
_encode = json.JSONEncoder().encode  # json.dumps compares its arguments with their defaults first


class AccessLog:
    """Writes a line for each call.

    Args:
        always: Log at level info, and at warning where the service is at fault; otherwise at debug.
    """

    def __init__(self, *, always: bool) -> None:
        self._always = always
        self._process = _members(structlog.contextvars.get_contextvars())  # the number of a worker
        self._second, self._formatted_second = 0, ""  # of the last line
        self._pending: list[_Call] = []
        self._flushing: asyncio.Task[None] | None = None

    def severity(self, code: str) -> str | None:
        """The level of the line of a call that ends with ``code``; None if it gets no line."""
        severity = "debug"
        if self._always:
            severity = "warning" if code in _FAULTS else "info"
        return severity if logs.is_logged(severity) else None

    def write(self, severity: str, code: str, seconds: float, more: Mapping[str, object] = _NOTHING) -> None:
        """Writes the line of the current call, which has ended: now on a console, within `_FLUSH_SECONDS` as JSON.

        Args:
            severity: What `severity` returned.
            code: Name of the status code.
            seconds: Duration of the call.
            more: Fields of a call over another protocol than gRPC.
        """
        call, who = current_call.get(), current_principal.get(_UNAUTHENTICATED)
        assert call is not None
        milliseconds = round(seconds * 1e3, 3)
        if not logs.is_json():
            fields: dict[str, object] = {"call": call.id, "method": call.method, "code": code, "ms": milliseconds}
            sent = {"principal": who.id, "tenant": who.tenant, "peer": call.peer}
            fields |= {name: logs.escaped(text) for name, text in sent.items()} | dict(more)
            with suppress(OSError):  # a log that cannot be written fails no call
                getattr(log, severity)("call", **fields)
            return
        others = {**trace_fields(), **more} if more else trace_fields()
        self._pending.append((time.time(), severity, call, code, milliseconds, who, others))
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            await asyncio.sleep(_FLUSH_SECONDS)
        finally:  # also when the task is cancelled, at the end of the loop
            self._flushing = None
            pending, self._pending = self._pending, []
            self._write(pending)

    def _write(self, calls: Iterable[_Call]) -> None:
        try:
            for chunk in _chunks(self._format(call) for call in calls):
                sys.stderr.write(chunk)
        except OSError:
            pass  # a log that cannot be written cannot say so either
        except Exception as error:  # noqa: BLE001 - nobody awaits this task
            log.warning("access log failed", **logs.origin_of(error))

    def _format(self, call: _Call) -> str:
        """Returns the line, with the fields that structlog gives all other lines."""
        now, severity, context, code, milliseconds, who, more = call
        return (
            f'{{"log": "access", "event": "call", "level": "{severity}", "timestamp": "{self._timestamp(now)}", '
            f'"call": "{context.id}", "method": "{context.method}", "code": "{code}", "ms": {milliseconds}, '
            f'"principal": {_encode(logs.escaped(who.id))}, "tenant": {_encode(logs.escaped(who.tenant))}, '
            f'"peer": {_encode(logs.escaped(context.peer))}{_members(more)}{self._process}}}\n'
        )

    def _timestamp(self, now: float) -> str:
        second = int(now)
        if second != self._second:
            self._second, self._formatted_second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._formatted_second}.{int((now - second) * 1e6):06}Z"


def _chunks(lines: Iterable[str]) -> Iterator[str]:
    """Joins lines to chunks that a pipe takes in one piece, so that lines of several processes do not mix."""
    chunk = ""
    for line in lines:
        if chunk and len(chunk) + len(line) > PIPE_BUF:  # lines are ASCII, so these are bytes
            yield chunk
            chunk = ""
        chunk += line
    yield chunk


def _members(fields: Mapping[str, object]) -> str:
    """Returns ``fields`` as further members of a JSON object."""
    return "".join([f', "{name}": {_encode(value)}' for name, value in fields.items()])
