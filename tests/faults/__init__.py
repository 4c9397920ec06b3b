"""The fault suite: real processes under load are broken in many ways, and what was promised is checked afterwards.

Run it with `python -m tests.faults`; `docs/reliability.md` says what it found.
"""

import os

# Before gRPC is imported: servers are started while calls run, and its fork handlers crash the child now and then.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
