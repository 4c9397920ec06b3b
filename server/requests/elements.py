"""How many values a request may consist of: bytes do not bound the work that small values make."""

from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from server.errors import FieldInvalid, Violation

MAX_ELEMENTS = 100_000  # of all lists and maps of a request


def check_elements(request: Message) -> None:
    """Checks the elements of all lists and maps in ``request``, and stops counting at the limit.

    Raises:
        FieldInvalid: There are more than `MAX_ELEMENTS`.
    """
    if not has_at_most(MAX_ELEMENTS, request):
        rule = f"the request must have at most {MAX_ELEMENTS} list elements and map entries"
        raise FieldInvalid(Violation("", rule, "request.max_elements"))


def has_at_most(limit: int, message: Message) -> bool:
    """Whether all lists and maps in ``message`` have at most ``limit`` elements together; visits no more."""
    count, ahead = 0, [message]
    while ahead:
        for field, value in ahead.pop().ListFields():
            count += len(value) if field.is_repeated else 0
            if count > limit:
                return False
            ahead += [child for _, child in children(field, value)]
    return True


def children(field: FieldDescriptor, value: Any) -> Iterator[tuple[str, Message]]:
    """Yields the messages in the value of a field, each with its key as it stands in a path."""
    if not field.message_type:
        return
    if is_map(field):
        if field.message_type.fields_by_name["value"].message_type:
            yield from ((f"[{quoted(key)}]", child) for key, child in value.items())
    elif field.is_repeated:
        yield from ((f"[{index}]", child) for index, child in enumerate(value))
    else:
        yield "", value


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return bool(field.message_type and field.message_type.GetOptions().map_entry)


def is_duration(field: FieldDescriptor) -> bool:
    """Whether a field is a duration, which is one value although it is a message."""
    return bool(field.message_type and field.message_type.full_name == "google.protobuf.Duration")


def quoted(key: object) -> str:
    """Returns a key or an index as it stands in a path."""
    return f'"{key}"' if isinstance(key, str) else str(key)
