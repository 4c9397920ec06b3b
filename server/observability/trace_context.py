"""The trace of the current call, for its log lines; `server.interceptors.tracing` sets it if tracing is on."""

import re
from collections.abc import Iterable
from contextvars import ContextVar

# The trace id in hex (W3C Trace Context): the caller's, or one that began here; '' for none.
current_trace: ContextVar[str] = ContextVar("current_trace", default="")
# The id of the call's own span; '' without tracing.
current_span: ContextVar[str] = ContextVar("current_span", default="")


def trace_fields() -> dict[str, str]:
    """Returns the log fields `trace` and `span`, as far as the current call has them."""
    trace = current_trace.get()
    if not trace:
        return {}
    span = current_span.get()
    return {"trace": trace, "span": span} if span else {"trace": trace}


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Returns the trace id in a call's metadata; '' if there is none, or more than one."""
    found = [_TRACEPARENT.fullmatch(str(value)) for key, value in metadata if key == "traceparent"]
    return found[0][1] if len(found) == 1 and found[0] else ""
