"""Reads refusals from the log of a service, a line at a time.

Callers choose some of what is in a log, and who collects it may cut it anywhere: no line is too long or too strange.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from server.policy.rules import MAX_RULES

MAX_LINE = 64 * 1024  # bytes; the line of a message that names twenty items has about 3,000
_MAX_CHARACTERS = 256  # of a value, as in the log
_MARKS = (b'"refused"', b'"credentials refused"')  # a line without any of these is about something else

Rules = tuple[int | None, ...]


@dataclass(frozen=True)
class Refusal:
    """A refused call, or a refused message of a stream.

    Attributes:
        action: For example ``delete conversation``; the method of a call whose credentials were refused.
        outcome: The reason that the caller was given.
        why: What was wrong with the credentials.
        rules: Numbers of the rules of which one has refused; None stands for "no rule matches". Empty if the line
            does not say it.
        policy: Its digest.
    """

    time: datetime
    principal: str
    tenant: str
    action: str
    outcome: str
    why: str = ""
    rules: Rules = ()
    policy: str = ""
    call: str = ""
    conversation_id: str = ""


@dataclass
class LinesRead:
    """How many lines were read, and how many of them were no JSON or not as the service writes them."""

    total: int = 0
    unreadable: int = 0


def read_refusals(stream: BinaryIO, read: LinesRead) -> Iterator[Refusal]:
    """Yields the refusals in a log, and counts its lines in ``read``."""
    for line in _lines(stream):
        read.total += 1
        try:
            refusal = parse_line(line)
        except (ValueError, RecursionError, OverflowError):
            read.unreadable += 1
        else:
            if refusal:
                yield refusal


def _lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a stream; of one that is longer than `MAX_LINE`, only that it is there."""
    while line := stream.readline(MAX_LINE):
        if len(line) < MAX_LINE or line.endswith(b"\n"):
            yield line
        else:
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield b""


def parse_line(line: bytes) -> Refusal | None:
    """Returns the refusal that a line tells of, or None for a line about something else.

    What stands before the JSON is skipped: `kubectl logs --prefix` and `docker compose logs` name the container there.

    Raises:
        ValueError, RecursionError, OverflowError: It is no JSON object, or not as the service writes it.
    """
    start = line.find(b"{")
    if start < 0 or not line.rstrip().endswith(b"}"):
        raise ValueError("no JSON object")
    if not any(mark in line for mark in _MARKS):
        return None
    match json.loads(line[start:].decode()):
        case {"log": "audit", "event": "refused"} as fields:
            return _refusal(fields)
        case {"event": "credentials refused"} as fields:
            return _refused_credentials(fields)
        case _:
            return None


def _refusal(fields: Mapping[str, Any]) -> Refusal:
    return Refusal(
        time=_time(fields),
        principal=_text(fields, "principal"),
        tenant=_text(fields, "tenant"),
        action=f"{_text(fields, 'action')} {_text(fields, 'resource')}",
        outcome=_text(fields, "outcome"),
        rules=_rules(fields),
        policy=_text(fields, "policy"),
        call=_text(fields, "call"),
        conversation_id=_text(fields, "conversation_id"),
    )


def _refused_credentials(fields: Mapping[str, Any]) -> Refusal:
    return Refusal(
        time=_time(fields),
        principal="",
        tenant="",
        action=_text(fields, "method").rpartition("/")[2],
        outcome="UNAUTHENTICATED",
        why=_text(fields, "why"),
        call=_text(fields, "call"),
    )


def _time(fields: Mapping[str, Any]) -> datetime:
    found = datetime.fromisoformat(_text(fields, "timestamp"))
    if found.tzinfo is None:
        raise ValueError("a time without its zone")
    return found.astimezone(UTC)


def _text(fields: Mapping[str, Any], name: str) -> str:
    found = fields.get(name, "")
    if not isinstance(found, str):
        raise ValueError(f"{name} is no text")  # noqa: TRY004 - the line is at fault, not its reader
    return found[:_MAX_CHARACTERS]


def _rules(fields: Mapping[str, Any]) -> Rules:
    found = [fields["rule"]] if "rule" in fields else fields.get("rules", [])
    if not isinstance(found, list) or len(found) > MAX_RULES + 1 or not all(map(_is_rule, found)):
        raise ValueError("rules are no list of numbers")
    return tuple(found)


def _is_rule(found: object) -> bool:
    return found is None or (type(found) is int and 0 < found <= MAX_RULES)
