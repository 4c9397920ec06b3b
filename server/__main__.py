"""``python -m server`` and the command ``conversation-service``."""

import os

# gRPC reads these when it is imported. Its core writes to standard error what the service logs itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# The processes started here exec at once: the fork handlers are of no use, and crash the child now and then.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from server.observability import lean_structlog  # noqa: F401 - before the modules that log

# isort: split
from server.cli.commands import main

if __name__ == "__main__":
    main()
