"""Log lines: for people on a console, or JSON; on standard error.

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
_LONGEST = 256  # characters of a value; what a caller sent may be long
_FRAMES = 6  # of a traceback, the innermost


class _Now:
    """What is in force; until `configure`, everything is logged."""

    level = "debug"
    form = "console"


def configure(level: str, form: str) -> None:
    """Sets up structlog, and the standard library's logging to go through it."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        _add_call,
        _cut,
    ]
    last = _renderer(form)
    structlog.configure(
        processors=[_hidden, *shared, last],
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
    logging.basicConfig(handlers=[handler], force=True)
    _Now.form = form
    set_level(level)


def set_level(level: str) -> None:
    """Changes the least severe level that is logged, at once and for all; the audit log has none.

    Libraries are heard from `warning` on, whatever the level: below, they say what they work on.
    """
    number = _NUMBERS[level]
    _Now.level = level
    logging.getLogger().setLevel(max(number, logging.WARNING))


def level() -> str:
    """The least severe level that is logged."""
    return _Now.level


def is_logged(severity: str) -> bool:
    """Whether lines of a level are."""
    return _NUMBERS[severity] >= _NUMBERS[_Now.level]


def is_json() -> bool:
    """Whether lines are JSON."""
    return _Now.form == "json"


def escaped(text: str) -> str:
    """``text`` cut, with signs that would end a line, or that a terminal obeys, written out."""
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return escape_unprintable(text)


def _renderer(form: str) -> Processor:
    if form == "json":
        return structlog.processors.JSONRenderer()
    colors, plain = sys.stderr.isatty(), structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)


def _hidden(_logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Drops what is below the level, but for the audit log.

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
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
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


def _cut(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    for key, value in event.items():
        if isinstance(value, str) and len(value) > _LONGEST:
            event[key] = value[:_LONGEST] + "…"
    return event
