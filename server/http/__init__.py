"""The HTTP edge: the OpenAI Conversations API beside gRPC, on the same methods and behind the same interceptors.

Nothing of it is imported unless `http_listen` is set. docs/http.md describes it for callers, and
docs/adr/0033-an-edge-that-speaks-the-openai-api.md says why it is built as it is.
"""
