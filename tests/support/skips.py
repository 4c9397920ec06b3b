"""Tests without the tools they need: skipped by the tool's name, or failed where the tool is required."""

import os
from collections.abc import Iterable

import pytest

from tests.support.tools import REQUIRED, TOOLS, is_installed, required_tools


def require_tools(names: Iterable[str]) -> None:
    """Skips the running test if one of its tools is not installed; fails it if ``REQUIRE_TOOLS`` lists that tool."""
    for name in names:
        tool = TOOLS[name]
        if not is_installed(name):
            reason = f"{name} is not installed: {tool.hint}"
            if name in required_tools(os.environ):
                pytest.fail(f"{reason} ({REQUIRED} lists it)", pytrace=False)
            pytest.skip(reason)
