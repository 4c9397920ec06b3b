"""How many bytes a request may have.

| method | bytes |
|---|---|
| writes items: `NewItem` or `Record` is part of its request | `max_message_bytes` |
| any other | 64 KiB |

docs/adr/0020 says why.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from server.errors import FieldInvalid, Violation

SMALL_REQUEST_BYTES = 64 * 1024
_CARRIERS = ("conversations.v1.NewItem", "conversations.v1.Record")


def max_request_bytes(request: Descriptor, max_message_bytes: int) -> int:
    """Returns the limit of a method, given the type of its request."""
    carries_items = any(_type_of(field) in _CARRIERS for field in request.fields)
    return max_message_bytes if carries_items else min(SMALL_REQUEST_BYTES, max_message_bytes)


def request_too_large(limit: int) -> FieldInvalid:
    """Returns the error of a request of more than ``limit`` bytes."""
    return FieldInvalid(Violation("", f"the request must have at most {limit} bytes", "request.max_bytes"))


def _type_of(field: FieldDescriptor) -> str:
    return field.message_type.full_name if field.message_type else ""
