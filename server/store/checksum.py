"""The digest of a conversation in a transfer: SHA-256, block by block.

It begins with the SHA-256 of the head. Each block of items then makes a new one: of the digest so far, and of the
block as a message `Record.Items`. A block is as long as it can be: `BLOCK_ITEMS` items of `BLOCK_BYTES` together at
most, or one item; counted are the bytes that the store has of an item. All messages are serialized deterministically.

The state of SHA-256 cannot be kept, but the digest after a block can: in a token, or in a row. So what was broken goes
on without the beginning being read again.
"""

from hashlib import sha256

from conversations.v1 import conversation_pb2

BLOCK_ITEMS = 1_000
BLOCK_BYTES = 1024 * 1024
# Of a head: what an import keeps.
_FIELDS = (
    "id",
    "create_time",
    "metadata",
    "update_time",
    "owner",
    "attributes",
    "last_sequence",
    "forked_from",
    "expire_time",
    "idle_ttl",
)


def kept_head(head: conversation_pb2.Conversation) -> bytes:
    """Returns what an import keeps of a head, serialized."""
    kept = conversation_pb2.Conversation()
    kept.CopyFrom(head)
    for field, _ in head.ListFields():
        if field.name not in _FIELDS:
            kept.ClearField(field.name)  # type: ignore[arg-type]
    kept.DiscardUnknownFields()
    return kept.SerializeToString(deterministic=True)


def digest_of_head(kept: bytes) -> bytes:
    """Returns the digest of a conversation without items, of what `kept_head` returned."""
    return sha256(kept).digest()


def add_block(digest: bytes, block: bytes) -> bytes:
    """Returns the digest after one more block.

    Args:
        digest: Before it.
        block: A serialized `Record.Items`.
    """
    return sha256(digest + block).digest()
