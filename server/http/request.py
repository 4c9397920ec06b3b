"""A request over HTTP, as those see it who make a message of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from server.items.text import Json


@dataclass(slots=True)
class Request:
    """What a caller asks for, without its body as long as nobody has read it.

    Attributes:
        verb: The method of HTTP.
        path: What stands in the places of the route's path, decoded.
        query: The parameters that the route has, each once; not `include`, which may come more than once.
        request_id: What `Idempotency-Key` stands for; '' without one.
        if_match: Of the header; '' without one.
        if_none_match: Likewise.
        document: The JSON of the body; an empty object while there is none.
    """

    verb: str
    path: Mapping[str, str]
    query: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    if_match: str = ""
    if_none_match: str = ""
    document: Json = field(default_factory=dict)

    @property
    def is_repeatable(self) -> bool:
        """Whether to do it twice is to do it once."""
        return self.verb == "GET" or bool(self.request_id)
