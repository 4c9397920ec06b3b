"""Values as PostgreSQL reads them from text."""

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

# Without a zone, as the driver sends them.
_ENDS: Mapping[Any, str] = {datetime.max: "infinity", datetime.min: "-infinity"}  # noqa: DTZ901 - as above


def array_as_text(values: Iterable[str]) -> str:
    """An array as an element of a text array; an array of arrays would have to be rectangular."""
    quoted = (each.replace("\\", "\\\\").replace('"', '\\"') for each in values)
    return "{" + ",".join(f'"{each}"' for each in quoted) + "}"


def as_text(value: Any) -> str | None:
    """A value as PostgreSQL reads it."""
    match value:
        case None | str():
            return value
        case bool():
            return "true" if value else "false"
        case int():
            return str(int(value))
        case bytes():
            return f"\\x{value.hex()}"
        case timedelta():
            return f"{value.days} days {value.seconds} seconds {value.microseconds} microseconds"
        case date():
            return _time_as_text(value)
        case _:
            return _array_as_text(value)


def _time_as_text(value: date) -> str:
    """The first and the last moment without a zone stand for infinity."""
    return _ENDS.get(value) or value.isoformat()


def _array_as_text(values: Any) -> str:
    if all(isinstance(value, str) for value in values):
        return array_as_text(values)
    texts = map(as_text, values)
    return "{" + ",".join("NULL" if text is None else array_as_text([text])[1:-1] for text in texts) + "}"
