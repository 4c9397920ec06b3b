"""The access log: one line for each call, of ids and words; nothing of the content.

A line for every call must cost little: as JSON it is put together here, in a fifth of the
time that structlog takes for the same line (docs/operations.md).
"""

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import structlog

from server import logs
from server.policy.principal import Principal, current_principal
from server.tracing import trace_fields

log = structlog.get_logger(__name__, log="access")

_FAULTS = frozenset(("INTERNAL", "UNKNOWN", "DATA_LOSS"))  # ours, never the caller's
_STRANGER = Principal("", "")  # of a call that was refused before anybody knew whose it was
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
        """The line of a call that has ended."""
        who = current_principal.get(_STRANGER)
        principal, tenant = logs.escaped(who.id), logs.escaped(who.tenant)
        kind = peer.partition(":")[0]  # ipv4, ipv6 or unix; the address is nobody's business here
        milliseconds = round(seconds * 1e3, 3)
        if not logs.is_json():
            words = {"principal": principal, "tenant": tenant, "peer": kind}
            getattr(log, severity)("call", method=method, code=code, ms=milliseconds, **words)
            return
        line = (
            f'{{"log": "access", "event": "call", "level": "{severity}", "timestamp": "{self._now()}", '
            f'"method": "{method}", "code": "{code}", "ms": {milliseconds}, '
            f'"principal": {_encode(principal)}, "tenant": {_encode(tenant)}, "peer": "{kind}"'
            f"{_members(trace_fields())}{self._process}}}\n"
        )
        with suppress(OSError):  # a log that cannot be written fails no call
            sys.stderr.write(line)

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second, self._time = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._time}.{int((now - second) * 1e6):06}Z"


def _members(fields: Mapping[str, object]) -> str:
    """More members of a JSON object."""
    return "".join([f', "{name}": {_encode(value)}' for name, value in fields.items()])
