"""How a broken rule of the contract is worded: as the OpenAI API words it, where that has been recorded."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

from server.errors import Violation
from server.http.paths import json_steps, lookup, shown
from server.http.problems import Problem, clip, too_large, too_many_elements, unknown_cursor
from server.http.request import Request

_MAX_MORE = 2  # further violations in a message
_NUMBER = re.compile(r"\d+")

_Words: TypeAlias = Callable[[str, object, Violation], Problem]  # of a path, the value there, and the rule


def problem_of_violations(violations: tuple[Violation, ...], request: Request) -> Problem:
    """Returns the answer of the first violation, with the next ones in its message."""
    first, *others = violations
    problem = _of_violation(first, request)
    if not others or problem.status != 400:
        return problem
    more = [f"{shown(json_steps(each.field))} {each.rule}" for each in others[:_MAX_MORE]]
    rest = f" and {len(others) - _MAX_MORE} more" if len(others) > _MAX_MORE else ""
    return replace(problem, message=f"{problem.message} (also: {'; '.join(map(clip, more))}{rest})")


def _of_violation(violation: Violation, request: Request) -> Problem:
    if by_field := _FIELDS.get(violation.field):
        return by_field(request)
    steps = json_steps(violation.field)
    words = _RULES.get(violation.reason, _other)
    return words(shown(steps), lookup(request.document, steps), violation)


def _bad_conversation_id(request: Request) -> Problem:
    found = clip(request.path.get("conversation_id", ""))
    if found.startswith("conv"):
        return Problem(404, f"Conversation with id '{found}' not found.")
    message = f"Invalid 'conversation_id': '{found}'. Expected an ID that begins with 'conv'."
    return Problem(400, message, "invalid_value", "conversation_id")


def _bad_item_id(request: Request) -> Problem:
    return Problem(404, f"Item with id '{clip(request.path.get('item_id', ''))}' not found in conversation.")


def _bad_cursor(request: Request) -> Problem:
    return unknown_cursor("item", request.query.get("after", ""))


_FIELDS: Mapping[str, Callable[[Request], Problem]] = {
    "conversation_id": _bad_conversation_id,
    "conversation.id": _bad_conversation_id,
    "item_id": _bad_item_id,
    "after": _bad_cursor,
}


def _wrong_prefix(path: str, value: object, violation: Violation) -> Problem:
    prefix = violation.rule.rpartition(" ")[2]
    found = f": '{clip(value)}'" if isinstance(value, str) else ""
    message = f"Invalid '{path}'{found}. Expected an ID that begins with {prefix}."
    return Problem(400, message, "invalid_value", path)


def _too_many_elements(path: str, value: object, violation: Violation) -> Problem:
    return too_many_elements(path, _limit(violation), _length(value))


def _too_many_pairs(path: str, value: object, violation: Violation) -> Problem:
    limit, length = _limit(violation), _length(value)
    message = (
        f"Invalid '{path}': too many properties. Expected an object with at most {limit} properties, "
        f"but got an object with {length} properties instead."
    )
    return Problem(400, message, "object_above_max_properties", path)


def _too_long(path: str, value: object, violation: Violation) -> Problem:
    limit, (parent, _, key) = _limit(violation), path.partition(".")
    if parent == "metadata" and len(key) > limit:
        message = (
            f"Invalid property name in '{parent}': '{clip(key)}' is too long. Expected a string with maximum "
            f"length {limit}, but got a string with length {len(key)} instead."
        )
        return Problem(400, message, "property_name_above_max_length", clip(path))
    message = (
        f"Invalid '{path}': string too long. Expected a string with maximum length {limit}, "
        f"but got a string with length {_length(value)} instead."
    )
    return Problem(400, message, "string_above_max_length", path)


def _too_large(_path: str, _value: object, violation: Violation) -> Problem:
    return too_large(_limit(violation))


def _other(path: str, _value: object, violation: Violation) -> Problem:
    return Problem(400, f"Invalid '{clip(path)}': {violation.rule}.", "invalid_value", clip(path) or None)


_RULES: Mapping[str, _Words] = {
    "item.id_prefix": _wrong_prefix,
    "repeated.max_items": _too_many_elements,
    "map.max_pairs": _too_many_pairs,
    "string.max_len": _too_long,
    "request.max_bytes": _too_large,
}


def _limit(violation: Violation) -> int:
    """Returns the number in a rule."""
    match = _NUMBER.search(violation.rule)
    return int(match[0]) if match else 0


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | list | dict) else 0
