"""Which trace a call belongs to, for all that is logged of it. What makes traces is `server.app.instrumentation`."""

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
