"""A client of the Conversation Service: connections, errors, pages, watches and transfers."""

from conversations_client.channel import Client, Tls, connect
from conversations_client.errors import DOMAIN, ErrorDetails, Violation, details_of, status_of
from conversations_client.paging import list_conversations, list_items
from conversations_client.token import BearerToken
from conversations_client.transfer import export_conversations, import_conversations
from conversations_client.watch import Reset, watch_conversations, watch_items

__all__ = [
    "DOMAIN",
    "BearerToken",
    "Client",
    "ErrorDetails",
    "Reset",
    "Tls",
    "Violation",
    "connect",
    "details_of",
    "export_conversations",
    "import_conversations",
    "list_conversations",
    "list_items",
    "status_of",
    "watch_conversations",
    "watch_items",
]
