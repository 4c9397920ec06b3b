"""Ids of conversations and items: ``<prefix>_`` and 48 lower-case hex digits.

The layout is that of the source API: creation time in seconds, random digits
and, for items, the last 16 digits of their conversation. Callers treat ids as
opaque; only the end of an item's id is read back, to find its conversation.
"""

import os
import re
import time
from collections.abc import Sequence
from hashlib import blake2b

CONVERSATION_PREFIX = "conv"
_TAG = 16  # hex digits an item shares with its conversation
_RANDOM = 12  # bytes of an item's id that are its own
_MADE_HERE = re.compile(r"[a-z]+_[0-9a-f]{48}")


def new_conversation_id() -> str:
    """An id that no other conversation has; later ones sort later, by seconds."""
    return f"{CONVERSATION_PREFIX}_{int(time.time()):08x}{os.urandom(20).hex()}"


def conversation_id_for(tenant: str, principal: str, request_id: str, *, forks: bool = False) -> str:
    """The id of the conversation that ``request_id`` creates, or ``forks``: the same at every retry.

    So a retry meets the first call in the primary key of conversations, and no
    other key is needed that does not begin with a conversation id.
    """
    person = b"fork-conv" if forks else b"create-conv"
    digest = blake2b(f"{tenant}\0{principal}\0{request_id}".encode(), digest_size=24, person=person)
    return f"{CONVERSATION_PREFIX}_{digest.hexdigest()}"


def tag_of(item_id: str) -> str:
    """What the id of an item says of that of its conversation, which ends like it; '' for an id not made here."""
    return item_id[-_TAG:] if _MADE_HERE.fullmatch(item_id) else ""


def new_item_ids(prefixes: Sequence[str], conversation_id: str) -> list[str]:
    """One new id for each prefix, tagged with the end of ``conversation_id``."""
    stamp, tag = f"{int(time.time()):08x}", conversation_id[-_TAG:]
    random = os.urandom(len(prefixes) * _RANDOM).hex()  # one system call for all
    digits = 2 * _RANDOM
    return [
        f"{prefix}_{stamp}{random[start : start + digits]}{tag}"
        for prefix, start in zip(prefixes, range(0, len(random), digits), strict=True)
    ]
