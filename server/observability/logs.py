"""Sets up the log: lines on standard error, for people or as JSON.

Every line goes the same way, those of libraries too, and the level can be changed
while the service runs. structlog's own filter cannot: loggers keep the class they
were first used with. So the filter is a processor, the first of all.
"""

import logging
import sys
import traceback
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from server.observability.call_context import current_call
from server.observability.escaping import escape_unprintable
from server.observability.trace_context import trace_fields

LEVELS = ("debug", "info", "warning", "error")
_NUMBERS = {name: logging.getLevelNamesMapping()[name.upper()] for name in (*LEVELS, "critical")}
_MAX_CHARACTERS = 256  # of a value; callers may send long ones
_MAX_FRAMES = 6  # the innermost ones of a traceback


class _State:
    """The settings in force; until `configure`, everything is logged."""

    level = "debug"
    form = "console"


def configure(level: str, form: str) -> None:
    """Configures structlog, and routes the standard library's logging through it.

    Args:
        level: The lowest level that is logged.
        form: `console` or `json`.
    """
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        _add_call,
        _truncate,
    ]
    last = _renderer(form)
    structlog.configure(
        processors=[_drop_hidden, *shared, last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[_foreign, structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
        )
    )
    handler.addFilter(_is_worth_a_line)
    logging.basicConfig(handlers=[handler], force=True)
    _State.form = form
    set_level(level)


def set_level(level: str) -> None:
    """Changes the lowest level that is logged, for all loggers at once; audit lines are always logged.

    Libraries are heard from `warning` on, whatever the level: below, they say what they work on.
    """
    number = _NUMBERS[level]
    _State.level = level
    logging.getLogger().setLevel(max(number, logging.WARNING))


def level() -> str:
    """Returns the lowest level that is logged."""
    return _State.level


def is_logged(severity: str) -> bool:
    """Returns whether lines of a level are logged."""
    return _NUMBERS[severity] >= _NUMBERS[_State.level]


def is_json() -> bool:
    """Returns whether lines are JSON."""
    return _State.form == "json"


def escaped(text: str) -> str:
    """Returns ``text`` truncated, with unprintable characters escaped."""
    if len(text) > _MAX_CHARACTERS:
        text = text[:_MAX_CHARACTERS] + "…"
    return escape_unprintable(text)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Whether a line of a library is for operators.

    Those of grpc.aio about an answer that it could not send are not: it writes an error with a traceback whenever a
    caller leaves in that moment, and the call has its line in the access log and its count.
    """
    kind = record.exc_info[0] if record.exc_info else None
    return not (record.name.startswith("grpc.") and kind is not None and kind.__name__ == "ExecuteBatchError")


def _renderer(form: str) -> Processor:
    if form == "json":
        return structlog.processors.JSONRenderer()
    colors, plain = sys.stderr.isatty(), structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)


def _drop_hidden(_logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Drops lines below the level, except audit lines.

    Raises:
        DropEvent: That is how structlog drops a line.
    """
    if event.get("log") != "audit" and not is_logged(name):
        raise structlog.DropEvent
    return event


def _add_call(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Adds the trace and the id of the current call, where the line does not have them itself."""
    call = current_call.get()
    return {**trace_fields(), **({"call": call.id} if call else {}), **event}


def origin_of(error: BaseException) -> dict[str, object]:
    """Returns what an exception is and where it came from, without its text, which may hold content."""
    frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
    return {
        "error": type(error).__name__,
        "frames": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def _foreign(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Replaces an exception by what it is and where it came from."""
    found: Any = event.pop("exc_info", None)
    error = found[1] if isinstance(found, tuple) else found
    if isinstance(error, BaseException):
        event.update(origin_of(error))
    return event


def _truncate(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _MAX_CHARACTERS:
            event[key] = value[:_MAX_CHARACTERS] + "…"
    return event
