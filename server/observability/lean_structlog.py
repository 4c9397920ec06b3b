"""Imports structlog without rich, which it would import for tracebacks in color; the logs have plain ones.

rich and Pygments take 4 MB. A program imports this before anything else that imports structlog.
"""

import sys
from typing import Any

if "structlog" not in sys.modules and "rich" not in sys.modules:
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None  # how an import is refused
    import structlog  # noqa: F401 - imported for its effect

    del sys.modules["rich"]  # typer may use it for the help of a command
