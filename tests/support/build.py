"""Requests in a line each, so that a test says only what matters to it."""

from typing import Any

from conversations.v1.content_pb2 import ROLE_USER, Content, InputText
from conversations.v1.conversation_pb2 import AttributeValues, Conversation
from conversations.v1.conversations_service_pb2 import (
    AppendItemsRequest,
    BatchGetItemsRequest,
    CreateConversationRequest,
    CreateItemsRequest,
    DeleteConversationRequest,
    DeleteConversationsRequest,
    DeleteItemRequest,
    ForkConversationRequest,
    GetConversationRequest,
    GetItemRequest,
    ListConversationsRequest,
    ListItemsRequest,
    RewindConversationRequest,
    UndeleteConversationRequest,
    UpdateConversationRequest,
)
from conversations.v1.item_body_pb2 import Message
from conversations.v1.item_pb2 import Item, ItemReference, NewItem
from google.protobuf.field_mask_pb2 import FieldMask


def user_message(text: str = "hi", **fields: Any) -> NewItem:
    """A message of a user; ``fields`` are those of the item around it."""
    return new_item(message=Message(role=ROLE_USER, content=[Content(input_text=InputText(text=text))]), **fields)


def new_item(**fields: Any) -> NewItem:
    """An item with these fields, to append."""
    return NewItem(item=Item(**fields))


def copy_of(conversation_id: str, item_id: str) -> NewItem:
    """A reference to an item, to append."""
    return NewItem(reference=ItemReference(conversation_id=conversation_id, item_id=item_id))


def text_of(item: Item) -> str:
    """The text of a message."""
    return item.message.content[0].input_text.text


def sets(**attributes: list[str]) -> dict[str, AttributeValues]:
    """Attributes of a conversation."""
    return {name: AttributeValues(values=values) for name, values in attributes.items()}


def plain(conversation: Conversation) -> dict[str, set[str]]:
    """The attributes of a conversation as sets."""
    return {name: set(values.values) for name, values in conversation.attributes.items()}


def create(*items: NewItem, request_id: str = "", **conversation: Any) -> CreateConversationRequest:
    """A request for a new conversation with these items and fields."""
    return CreateConversationRequest(conversation=Conversation(**conversation), items=items, request_id=request_id)


def get(conversation_id: str) -> GetConversationRequest:
    """A request for a conversation."""
    return GetConversationRequest(conversation_id=conversation_id)


def update(conversation_id: str, *paths: str, request_id: str = "", **conversation: Any) -> UpdateConversationRequest:
    """A request to change a conversation; without ``paths`` it has no mask."""
    mask = FieldMask(paths=paths) if paths else None
    sent = Conversation(id=conversation_id, **conversation)
    return UpdateConversationRequest(conversation=sent, update_mask=mask, request_id=request_id)


def delete(conversation_id: str, **fields: Any) -> DeleteConversationRequest:
    """A request to delete a conversation."""
    return DeleteConversationRequest(conversation_id=conversation_id, **fields)


def undelete(conversation_id: str, **fields: Any) -> UndeleteConversationRequest:
    """A request to take the delete of a conversation back."""
    return UndeleteConversationRequest(conversation_id=conversation_id, **fields)


def delete_many(filter_: str, **fields: Any) -> DeleteConversationsRequest:
    """A request to delete all conversations that match a filter."""
    return DeleteConversationsRequest(filter=filter_, **fields)


def append(conversation_id: str, *items: NewItem, **fields: Any) -> CreateItemsRequest:
    """A request to append items."""
    return CreateItemsRequest(conversation_id=conversation_id, items=items, **fields)


def ahead(conversation_id: str, *items: NewItem, **fields: Any) -> AppendItemsRequest:
    """A message of a stream of appends; without an id it is a later one."""
    return AppendItemsRequest(conversation_id=conversation_id, items=items, **fields)


def get_item(conversation_id: str, item_id: str) -> GetItemRequest:
    """A request for one item."""
    return GetItemRequest(conversation_id=conversation_id, item_id=item_id)


def batch_get(conversation_id: str, *item_ids: str) -> BatchGetItemsRequest:
    """A request for items by id."""
    return BatchGetItemsRequest(conversation_id=conversation_id, item_ids=item_ids)


def list_items(conversation_id: str, **fields: Any) -> ListItemsRequest:
    """A request for a page of items."""
    return ListItemsRequest(conversation_id=conversation_id, **fields)


def delete_item(conversation_id: str, item_id: str, **fields: Any) -> DeleteItemRequest:
    """A request to delete an item."""
    return DeleteItemRequest(conversation_id=conversation_id, item_id=item_id, **fields)


def fork(conversation_id: str, request_id: str = "", **fields: Any) -> ForkConversationRequest:
    """A request to fork a conversation; ``fields`` are of the request if it has them, else of the new conversation."""
    own = {name: fields.pop(name) for name in ("through_item_id", "through_sequence") if name in fields}
    sent = Conversation(**fields) if fields else None
    return ForkConversationRequest(conversation_id=conversation_id, conversation=sent, request_id=request_id, **own)


def rewind(conversation_id: str, sequence: int, **fields: Any) -> RewindConversationRequest:
    """A request to delete the items behind a place."""
    return RewindConversationRequest(conversation_id=conversation_id, sequence=sequence, **fields)


def request_of_each_method(conversation_id: str) -> dict[str, Any]:
    """A request of each method that works on a conversation with the item `msg_1`; the deletes find nothing."""
    everything: dict[str, Any] = {"metadata": {"topic": "demo"}, "attributes": sets(teams=["a"])}
    return {
        "CreateConversation": create(user_message("hello"), **everything),
        "GetConversation": get(conversation_id),
        "UpdateConversation": update(conversation_id, "metadata", "attributes.teams", **everything),
        "DeleteConversation": delete("conv_nothing"),
        "UndeleteConversation": undelete("conv_nothing"),
        "ListConversations": ListConversationsRequest(page_size=2, filter='metadata.a = "b"', order_by="create_time"),
        "CreateItems": append(conversation_id, user_message("hello"), user_message("again"), include=[1]),
        "AppendItems": ahead(conversation_id, user_message("hello"), user_message("again")),
        "GetItem": get_item(conversation_id, "msg_1"),
        "BatchGetItems": batch_get(conversation_id, "msg_1", "msg_1"),
        "ListItems": list_items(conversation_id, page_size=2, after="msg_1", filter='type = "message"'),
        "DeleteItem": delete_item(conversation_id, "msg_nothing"),
        "DeleteConversations": delete_many('metadata.topic = "nothing"'),
        "ForkConversation": fork(conversation_id, through_sequence=1, **everything),
        "RewindConversation": rewind("conv_nothing", 1, expected_last_sequence=2),
    }
