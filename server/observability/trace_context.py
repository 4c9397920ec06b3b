"""Which trace a call belongs to, for all that is logged of it. What makes traces is `server.app.instrumentation`."""

import re
from collections.abc import Iterable
from contextvars import ContextVar

# The trace (W3C Trace Context), in hex: the caller's, or with tracing on one begun here. '' for none.
current_trace: ContextVar[str] = ContextVar("current_trace", default="")
# The call's span in it; '' without tracing.
current_span: ContextVar[str] = ContextVar("current_span", default="")


def trace_fields() -> dict[str, str]:
    """What a log line of this call is found by: `trace`, and `span` if it has one of ours; empty outside of calls."""
    trace = current_trace.get()
    if not trace:
        return {}
    span = current_span.get()
    return {"trace": trace, "span": span} if span else {"trace": trace}


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def trace_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The trace id of a call's metadata; '' without one, or with several."""
    found = [_TRACEPARENT.fullmatch(str(value)) for key, value in metadata if key == "traceparent"]
    return found[0][1] if len(found) == 1 and found[0] else ""
