"""Writes the OpenAPI document of the HTTP edge from the descriptors, through the shapes that its JSON is made by.

It is exact about types, required keys and nulls. What a schema may get more of stays open: values of enums are
strings with examples, objects may have further keys, and unions a further kind.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "generated")]

from conversations.v1 import options_pb2
from conversations.v1.item_pb2 import Item
from conversations.v1.item_status_pb2 import ItemStatus
from google.protobuf.descriptor import FieldDescriptor

from server import __version__
from server.http.heads import INCLUDES, MAX_KEY_CHARACTERS
from server.http.requests import MAX_ITEMS
from server.http.routes import ROUTES, Route
from server.items.misfit import is_always_shown
from server.items.shape import Cardinality, Field, Form, Shape, body_shapes, enum_names, has_status
from server.requests.page_tokens import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE

Schema = dict[str, Any]

NULL: Schema = {"type": "null"}
TEXT: Schema = {"type": "string"}
SCALARS: dict[int, Schema] = {
    FieldDescriptor.CPPTYPE_STRING: TEXT,
    FieldDescriptor.CPPTYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.CPPTYPE_DOUBLE: {"type": "number"},
    FieldDescriptor.CPPTYPE_INT32: {"type": "integer"},
    FieldDescriptor.CPPTYPE_INT64: {"type": "integer"},
}
METADATA: Schema = {
    "type": "object",
    "maxProperties": 16,
    "propertyNames": {"minLength": 1, "maxLength": 64, "pattern": r"^[^\x00]*$"},
    "additionalProperties": {"type": "string", "maxLength": 512, "pattern": r"^[^\x00]*$"},
}
CONVERSATION: Schema = {
    "type": "object",
    "properties": {
        "id": {"type": "string", "pattern": "^conv"},
        "object": {"const": "conversation"},
        "created_at": {"type": "integer", "description": "Seconds since 1970."},
        "metadata": METADATA,
    },
    "required": ["id", "object", "created_at", "metadata"],
}
DELETED: Schema = {
    "type": "object",
    "properties": {"id": TEXT, "object": {"const": "conversation.deleted"}, "deleted": {"const": True}},
    "required": ["id", "object", "deleted"],
}
ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": TEXT,
                "type": {"enum": ["invalid_request_error", "server_error"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
        }
    },
    "required": ["error"],
}
INCLUDE: Schema = {"type": "array", "items": {"enum": sorted(INCLUDES)}}
PARAMETERS: dict[str, tuple[Schema, str]] = {
    "limit": (
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE, "default": DEFAULT_PAGE_SIZE},
        "How many at most.",
    ),
    "order": ({"enum": ["asc", "desc"], "default": "desc"}, "Newest first, or oldest first."),
    "after": (TEXT, "The page follows the object with this id."),
    "filter": ({"type": "string", "maxLength": 2048}, "Comparisons joined by AND, as in the gRPC contract."),
    "include": (INCLUDE, "Accepted in this spelling and as `include[]`; items are always whole."),
}
IDS: dict[str, Schema] = {
    "conversation_id": {"type": "string", "pattern": "^conv[A-Za-z0-9_-]*$", "maxLength": 64},
    "item_id": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 64},
}
KEY = {"type": "string", "minLength": 1, "maxLength": MAX_KEY_CHARACTERS, "pattern": "^[!-~]*$"}
ANSWERS = {
    "CreateConversation": "Conversation",
    "GetConversation": "Conversation",
    "UpdateConversation": "Conversation",
    "DeleteConversation": "DeletedConversation",
    "ListConversations": "ConversationList",
    "CreateItems": "ItemList",
    "ListItems": "ItemList",
    "GetItem": "Item",
    "DeleteItem": "Conversation",
}
BODIES: dict[str, Schema] = {
    "CreateConversation": {
        "type": "object",
        "properties": {
            "items": {
                "anyOf": [
                    {"type": "array", "maxItems": MAX_ITEMS, "items": {"$ref": "#/components/schemas/NewItem"}},
                    NULL,
                ]
            },
            "metadata": {"anyOf": [METADATA, NULL]},
        },
        "additionalProperties": False,
    },
    "UpdateConversation": {
        "type": "object",
        "properties": {"metadata": {"anyOf": [METADATA, NULL]}},
        "required": ["metadata"],
        "additionalProperties": False,
    },
    "CreateItems": {
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_ITEMS,
                "items": {"$ref": "#/components/schemas/NewItem"},
            }
        },
        "required": ["items"],
        "additionalProperties": False,
    },
}


class Side:
    """The schemas of what is read, or of what is written: there an optional key may be null."""

    def __init__(self, *, written: bool) -> None:
        self.written = written

    def of(self, shape: Shape) -> Schema:
        """The schema of a message."""
        match shape.form:
            case Form.RECORD:
                return self.record(shape)
            case Form.UNION:
                return self.union(shape)
            case Form.INLINE:
                return self.field(next(iter(shape.fields.values())))
            case Form.FREE_OBJECT:
                return {"type": "object"}
            case Form.FREE | Form.OPAQUE:
                return {}

    def record(self, shape: Shape, **constants: Schema) -> Schema:
        """The schema of an object with a key for each field."""
        required = [*constants, *(field.name for field in shape.fields.values() if self.requires(field))]
        properties = {**constants, **{field.name: self.optional(field) for field in shape.fields.values()}}
        found: Schema = {"type": "object", "properties": properties}
        return {**found, "required": required} if required else found

    def requires(self, field: Field) -> bool:
        """Whether the key has to be there."""
        if self.written:
            return is_always_shown(field)
        is_enum = field.cpp_type == FieldDescriptor.CPPTYPE_ENUM and field.cardinality is Cardinality.SINGULAR
        # A key that may be null has presence: an item that was sent without it comes back so.
        return not (field.has_presence or is_enum)

    def optional(self, field: Field) -> Schema:
        """The schema of a key, with null where that may stand."""
        schema = self.field(field)
        may_be_null = field.null_when_unset or (self.written and not is_always_shown(field))
        return {"anyOf": [schema, NULL]} if may_be_null and schema else schema

    def field(self, field: Field) -> Schema:
        """The schema of the value of a field."""
        one = self.one(field)
        match field.cardinality:
            case Cardinality.SINGULAR:
                return one
            case Cardinality.REPEATED:
                return {"type": "array", "items": one}
            case Cardinality.MAP:
                return {"type": "object", "additionalProperties": one}

    def one(self, field: Field) -> Schema:
        """The schema of a value, or of an element."""
        if field.shape and field.type_key:
            return self.record(field.shape, type={"type": "string", "examples": [field.type_key]})
        if field.shape:
            return self.of(field.shape)
        if field.enum_names:
            return {"type": "string", "examples": sorted(field.enum_names.values())}
        return SCALARS[field.cpp_type]

    def union(self, shape: Shape) -> Schema:
        """The schema of one of several forms; an object of another type is one of them."""
        arms = [
            self.record(field.shape, type={"const": name}) for name, field in shape.by_type_key.items() if field.shape
        ]
        others = [self.field(field) for kind, field in shape.by_json_type.items() if kind is not int]
        if arms:
            arms.append(_other_type(list(shape.by_type_key)))
        return {"anyOf": [*others, *arms]}

    def item(self, name: str, shape: Shape) -> Schema:
        """The schema of an item of a type."""
        head: Schema = {"type": {"const": name}}
        record = self.record(shape, **head)
        properties: Schema = {**head, "id": {"anyOf": [_id_of(name), NULL]} if self.written else TEXT}
        if has_status(name):
            status = _status_of(name)
            properties["status"] = {"anyOf": [status, NULL]} if self.written else status
        properties |= record["properties"]
        required = [*record["required"], *(() if self.written else ("id",))]
        if self.written and name == "message":
            properties["content"] = {"anyOf": [TEXT, properties["content"]]}
        return {"type": "object", "properties": properties, "required": required}


def _id_of(name: str) -> Schema:
    prefix = _item_type(name).id_prefix
    return {"type": "string", "pattern": f"^{prefix}[A-Za-z0-9_-]*$", "maxLength": 64}


def _status_of(name: str) -> Schema:
    """Known statuses that the type does not have are refused; one that is newer than the schema is kept."""
    names = enum_names(ItemStatus.DESCRIPTOR)
    own = [names[number] for number in _item_type(name).statuses]
    return {"type": "string", "examples": own, "not": {"enum": sorted(set(names.values()) - set(own))}}


def _item_type(name: str) -> Any:
    return Item.DESCRIPTOR.fields_by_name[name].GetOptions().Extensions[options_pb2.item_type]


def _other_type(known: list[str]) -> Schema:
    kind: Schema = {"type": "string", "not": {"enum": known}}
    return {"type": "object", "properties": {"type": kind}, "required": ["type"]}


def schemas() -> Schema:
    """The schemas of all objects."""
    read, written = Side(written=False), Side(written=True)
    found: Schema = {"Conversation": CONVERSATION, "DeletedConversation": DELETED, "Error": ERROR}
    for name, shape in body_shapes().items():
        found[f"Item.{name}"] = read.item(name, shape)
        found[f"NewItem.{name}"] = written.item(name, shape)
    names = list(body_shapes())
    untyped = {**found["NewItem.message"], "required": ["role", "content"]}
    untyped["properties"] = {**untyped["properties"], "type": NULL}
    reference = {
        "type": "object",
        "properties": {
            "type": {"enum": ["item_reference", None]},
            "id": TEXT,
            "role": NULL,
            "conversation_id": {"anyOf": [TEXT, NULL]},
        },
        "required": ["id"],
    }
    found["Item"] = {"anyOf": [*_refs("Item", names), _other_type(names)]}
    news = [_other_type([*names, "item_reference"]), untyped, reference]
    found["NewItem"] = {"anyOf": [*_refs("NewItem", names), *news]}
    found["ItemList"] = _list_of("Item")
    found["ConversationList"] = _list_of("Conversation")
    return found


def _refs(kind: str, names: list[str]) -> list[Schema]:
    return [{"$ref": f"#/components/schemas/{kind}.{name}"} for name in names]


def _list_of(name: str) -> Schema:
    return {
        "type": "object",
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": f"#/components/schemas/{name}"}},
            "first_id": {"type": ["string", "null"]},
            "last_id": {"type": ["string", "null"]},
            "has_more": {"type": "boolean"},
        },
        "required": ["object", "data", "first_id", "last_id", "has_more"],
    }


def operation(route: Route) -> Schema:
    """One operation, with its parameters, body and answers."""
    found: Schema = {"operationId": route.name[0].lower() + route.name[1:], "parameters": [*_parameters(route)]}
    if schema := BODIES.get(route.name):
        required = route.name != "CreateConversation"
        found["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    answer = {"$ref": f"#/components/schemas/{ANSWERS[route.name]}"}
    found["responses"] = {"200": {"description": "Done.", "content": {"application/json": {"schema": answer}}}}
    if route.name == "GetConversation":
        found["responses"]["304"] = {"description": "The conversation has the etag of If-None-Match."}
    error = {"$ref": "#/components/schemas/Error"}
    found["responses"]["default"] = {"description": "A problem.", "content": {"application/json": {"schema": error}}}
    return found


def _parameters(route: Route) -> list[Schema]:
    places = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    found: list[Schema] = [{"name": name, "in": "path", "required": True, "schema": IDS[name]} for name in places]
    for name in route.parameters:
        schema, description = PARAMETERS[name]
        found.append({"name": name, "in": "query", "schema": schema, "description": description})
    if route.verb != "GET":
        found.append({"name": "Idempotency-Key", "in": "header", "schema": KEY})
    if route.name in {"UpdateConversation", "DeleteConversation"}:
        found.append({"name": "If-Match", "in": "header", "schema": TEXT})
    if route.name == "GetConversation":
        found.append({"name": "If-None-Match", "in": "header", "schema": TEXT})
    return found


def document() -> Schema:
    """The whole document."""
    assert set(body_shapes()) < set(Item.DESCRIPTOR.fields_by_name)
    paths: Schema = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.verb.lower()] = operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Conversation Service",
            "version": __version__,
            "description": "The OpenAI Conversations API; generated from the gRPC contract.",
        },
        "paths": paths,
        "security": [{}, {"bearer": []}],
        "components": {
            "schemas": schemas(),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(document(), separators=(",", ":")) + "\n", encoding="utf-8")
