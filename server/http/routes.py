"""ROUTES: what is served, in one table."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import unquote

from conversations.v1 import conversations_service_pb2 as pb

from server.http import answers, requests
from server.http.answers import MakeAnswer
from server.http.context import HttpContext
from server.http.request import Request
from server.services.conversations import ConversationsServicer

SERVICE = pb.DESCRIPTOR.services_by_name["ConversationsService"]

# Runs a method of the contract on its request.
Run: TypeAlias = Callable[[ConversationsServicer, Any, HttpContext], Awaitable[Any]]


@dataclass(frozen=True, eq=False)
class Route:
    """One operation of the API.

    Attributes:
        verb: The method of HTTP.
        path: With the names of its variable parts in braces.
        name: Of the method of the contract.
        make: What makes the request of the method.
        answer: What makes the answer of the response.
        parameters: Of the query.
        run: Calls the method; by default as gRPC does.
    """

    verb: str
    path: str
    name: str
    make: Callable[[Request], Any]
    answer: MakeAnswer
    parameters: tuple[str, ...] = ()
    run: Run | None = None

    @property
    def method(self) -> str:
        """The method as interceptors know it."""
        return f"/{SERVICE.full_name}/{self.name}"


async def _list_items(servicer: ConversationsServicer, message: pb.ListItemsRequest, _context: HttpContext) -> Any:
    return await servicer.list_items(message, live_cursor=True)


async def _list_conversations(
    servicer: ConversationsServicer, message: pb.ListConversationsRequest, context: HttpContext
) -> Any:
    return await servicer.list_conversations(message, context.request.query.get("after", ""))


CONVERSATIONS = "/v1/conversations"
CONVERSATION = f"{CONVERSATIONS}/{{conversation_id}}"
ITEMS = f"{CONVERSATION}/items"
ITEM = f"{ITEMS}/{{item_id}}"
PAGE = ("limit", "order", "after")

ROUTES = (
    Route("POST", CONVERSATIONS, "CreateConversation", requests.create_conversation, answers.conversation),
    Route(
        "GET",
        CONVERSATIONS,
        "ListConversations",
        requests.list_conversations,
        answers.conversations,
        (*PAGE, "filter"),
        _list_conversations,
    ),
    Route("GET", CONVERSATION, "GetConversation", requests.get_conversation, answers.conversation),
    Route("POST", CONVERSATION, "UpdateConversation", requests.update_conversation, answers.conversation),
    Route("DELETE", CONVERSATION, "DeleteConversation", requests.delete_conversation, answers.deleted_conversation),
    Route("POST", ITEMS, "CreateItems", requests.create_items, answers.created_items, ("include",)),
    Route("GET", ITEMS, "ListItems", requests.list_items, answers.items, (*PAGE, "include"), _list_items),
    Route("GET", ITEM, "GetItem", requests.get_item, answers.item, ("include",)),
    Route("DELETE", ITEM, "DeleteItem", requests.delete_item, answers.conversation),
)
BY_METHOD: Mapping[str, Route] = {route.method: route for route in ROUTES}
# Methods of the contract with a path of their own that the OpenAI API does not have: they are served over gRPC alone.
GRPC_ONLY = frozenset(
    (
        "AppendItems",
        "BatchGetItems",
        "DeleteConversations",
        "ForkConversation",
        "RewindConversation",
        "UndeleteConversation",
        "WatchConversations",
        "WatchItems",
    )
)


class Router:
    """Finds the route of a request by the steps of its path."""

    def __init__(self) -> None:
        self._routes: dict[tuple[str, ...], dict[str, Route]] = {}
        for route in ROUTES:
            self._routes.setdefault(tuple(route.path.split("/")), {})[route.verb] = route

    def find(self, path: str) -> tuple[Mapping[str, Route], Mapping[str, str]]:
        """Returns the routes of a path by their verbs, and what stands in its variable parts; nothing if it has none.

        Args:
            path: As it came, with its escapes.
        """
        given = path.split("/")
        for steps, by_verb in self._routes.items():
            found = _places(steps, given) if len(steps) == len(given) else None
            if found is not None:
                return by_verb, found
        return {}, {}


def _places(steps: Sequence[str], given: Sequence[str]) -> dict[str, str] | None:
    """Returns what stands in the variable parts of a path; None if another part differs, or one is empty."""
    found: dict[str, str] = {}
    for step, part in zip(steps, given, strict=True):
        if step.startswith("{") and part:
            found[step[1:-1]] = unquote(part, errors="replace")
        elif step != part:
            return None
    return found
