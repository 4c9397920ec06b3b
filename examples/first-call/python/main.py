"""Creates a conversation over TLS with a token, and prints its owner."""

import asyncio
import os
from pathlib import Path

from conversations.v1.conversations_service_pb2 import CreateConversationRequest
from conversations_client import BearerToken, Tls, connect


async def read_token() -> str:
    """The token that `dev-credentials` wrote."""
    return Path(os.environ["CONVERSATIONS_TARGET_TOKEN_FILE"]).read_text(encoding="utf-8").strip()


async def main() -> None:
    """One call."""
    tls = Tls(ca=Path(os.environ["CONVERSATIONS_TARGET_CA"]).read_bytes())
    async with connect(os.environ["CONVERSATIONS_TARGET"], tls=tls, token=BearerToken(read_token)) as client:
        made = await client.conversations.CreateConversation(CreateConversationRequest())
    print(made.owner)


asyncio.run(main())
