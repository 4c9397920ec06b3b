"""The Conversation Service: the OpenAI Conversations API over gRPC and PostgreSQL."""

__version__ = "0.1.0"
