"""The commands of ``python -m server``, and the client that some of them use."""
