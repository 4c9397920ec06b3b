"""Paths: where in the JSON of a request a field of the contract is.

The contract has messages that the JSON does not show: the arm of a union is a `type`, and a list that can be absent is
a message of its own. `server.items.shape` knows both.
"""

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from server.items.shape import Cardinality, Form, Shape, body_shapes

Step: TypeAlias = str | int

_STEP = re.compile(r'(\w+)|\[(\d+)\]|\["(.*?)"\](?=[.\[]|$)', re.DOTALL)
_RENAMED = {"page_size": "limit", "request_id": "Idempotency-Key", "order_by": "order", "etag": "If-Match"}


def json_steps(field: str) -> list[Step]:
    """Returns the way to a field of a request, such as `items[0].item.message.content[1].input_text.text`."""
    steps = _parse(field)
    match steps:
        case ["conversation", *rest]:
            return rest
        case ["items", int(index), "item", *rest]:
            return ["items", index, *_item_steps(rest)]
        case ["items", int(index), "reference", *rest]:
            return ["items", index, *("id" if step == "item_id" else step for step in rest)]
        case [str(name), *rest]:
            return [_RENAMED.get(name, name), *rest]
        case _:
            return steps


def shown(steps: Iterable[Step]) -> str:
    """Returns the way as it stands in messages, such as `items[0].content[1].text`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)
    return text.removeprefix(".")


def lookup(document: object, steps: Sequence[Step]) -> object:
    """Returns the value that the way leads to; None if it leads nowhere."""
    for step in steps:
        match document:
            case dict():
                document = document.get(step)
            case list() if isinstance(step, int) and step < len(document):
                document = document[step]
            case _:
                return None
    return document


def _parse(field: str) -> list[Step]:
    found: list[Step] = []
    for match in _STEP.finditer(field):
        name, index, key = match.groups()
        found.append(int(index) if index is not None else key if key is not None else name)
    return found


def _item_steps(steps: list[Step]) -> list[Step]:
    """Returns the way inside of an item; behind `json` it is one of the JSON already."""
    match steps:
        case ["json", *rest] | ["unknown", "json", *rest]:
            return rest
        case [str(arm), *rest] if shape := body_shapes().get(arm):
            return list(_body_steps(shape, deque(rest)))
        case _:
            return steps


def _body_steps(shape: Shape | None, ahead: deque[Step]) -> Iterable[Step]:
    while ahead:
        step = ahead.popleft()
        if isinstance(step, int):
            yield step
            continue
        field = shape.fields.get(step) if shape else None
        if field is None or shape is None:
            if not (shape and shape.form is Form.OPAQUE):  # whose field `json` the JSON does not show
                yield step
            yield from ahead
            return
        if shape.form is Form.RECORD:
            yield step
        if field.cardinality is Cardinality.MAP and ahead:
            yield ahead.popleft()
        shape = field.shape
