"""Stored items as the blocks of an export."""

from collections.abc import Sequence

from conversations.v1 import transfer_service_pb2 as pb

from server.services.messages import conversation_of, item_fields, varint
from server.store.checksum import add_block, digest_of_head, kept_head
from server.store.exports import SMALL_BYTES, Exports, Reader
from server.store.items import StoredItem

_ITEMS_TAG = varint(pb.Record.DESCRIPTOR.fields_by_name["items"].number << 3 | 2)  # 2: length-delimited
_ITEM_TAG = varint(pb.Record.Items.DESCRIPTOR.fields_by_name["items"].number << 3 | 2)


def block_of(stored: Sequence[StoredItem]) -> bytes:
    """Returns a `Record.Items`, serialized deterministically; the fields of stored items come in any order."""
    return pb.Record.Items.FromString(b"".join(item_fields(_ITEM_TAG, stored))).SerializeToString(deterministic=True)


def record_of(block: bytes, token: str) -> bytes:
    """Returns a `Record` with a block and a resume token, serialized."""
    return b"".join((_ITEMS_TAG, varint(len(block)), block, pb.Record(resume_token=token).SerializeToString()))


def are_small(stored: Sequence[StoredItem]) -> bool:
    """Returns whether the block after these items should be read as one of small items."""
    return max((len(body) for _, body in stored), default=0) <= SMALL_BYTES


async def digest_of_stored(exports: Exports, reader: Reader, conversation_id: str) -> bytes:
    """Returns the digest of a conversation as it is now.

    Raises:
        ConversationNotFound: There is none that ``reader`` may read.
    """
    head = await exports.head(reader, conversation_id)
    digest, last, small = digest_of_head(kept_head(conversation_of(head.row))), head.row["last_sequence"], True
    stored = head.items
    if stored is None:
        stored = await exports.block(reader, conversation_id, 0, last, small=small)
    while stored:
        digest = add_block(digest, block_of(stored))
        sequence, small = stored[-1].sequence, are_small(stored)
        stored = await exports.block(reader, conversation_id, sequence, last, small=small) if sequence < last else []
    return digest
