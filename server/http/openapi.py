"""The OpenAPI document of the edge, as `make generate` writes it."""

from pathlib import Path

from conversations.v1 import conversations_service_pb2

DOCUMENT = Path(conversations_service_pb2.__file__).with_name("openapi.json").read_bytes().rstrip()
