"""The Conversation Service: the OpenAI Conversations API over gRPC and PostgreSQL (docs/architecture.md)."""

__version__ = "0.1.0"
