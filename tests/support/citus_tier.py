"""Which tests run on a distributed database, and why the others do not."""

from collections.abc import Iterable

import pytest

from tests.support.postgres import CITUS

_SHARED = {"postgres", "template"}  # fixtures of the shared database
_PLANS = "it is about the plans of one server"
_STATEMENTS = "it counts statements of one server, or looks for their text"
_LOCKS = "it looks for waits in the pg_stat_activity of one server"
_SQL = "it prepares the database with SQL that Citus does not take"
_LOG = "the log of changes is refused there"
_ERASURE = "erasures are refused there"
_OTHER = "it makes databases of its own, or starts servers"

# By folder, file or test, the longest that fits: why it is skipped.
REASONS = {
    "tests/store/test_list_scale.py": _PLANS,
    "tests/services/test_erasure.py": _ERASURE,
    "tests/services/test_watch_conversations.py": _LOG,
}


def mark_for_citus(items: Iterable[pytest.Item], *, is_distributed: bool) -> None:
    """Marks tests of the shared database with `citus` if that is distributed; skips those that need another one."""
    for item in items:
        if is_distributed and _SHARED & set(getattr(item, "fixturenames", ())):
            item.add_marker("citus")
            if reason := _reason_for(item.nodeid):
                item.add_marker(pytest.mark.skip(reason=f"on a distributed database: {reason}"))
        elif not is_distributed and item.get_closest_marker("citus"):
            item.add_marker(pytest.mark.skip(reason=f"needs {CITUS}, the address of a coordinator of Citus"))


def _reason_for(test: str) -> str | None:
    found = [name for name in REASONS if test.startswith(name)]
    return REASONS[max(found, key=len)] if found else None
