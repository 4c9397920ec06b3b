"""``python -m server``."""

import os

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its core writes to standard error what we tell in our own words

from server.cli.commands import main

main()
