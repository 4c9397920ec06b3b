"""Which tests run on a distributed database, and why the others do not."""

from collections.abc import Iterable

import pytest

from tests.support.postgres import CITUS

_SHARED = {"postgres", "template"}  # fixtures of the shared database
_PLANS = "it is about the plans of one server, or about pages of its tables"
_STATEMENTS = "it counts statements of one server, or looks for their text"
_LOCKS = "it locks rows, or looks for those who wait, at the coordinator, which has none"
_LOG = "the log of changes is refused there"
_ERASURE = "erasures are refused there"
_LINE = "the log of the start has one more line there"
_TIME = "it has to be faster than a poll"
_PARTS = "it runs statements of one server, which have others in their place there"
_SHARING = "calls on several conversations share no statement there"
_PGBOUNCER = "PgBouncer is refused there"
_ACTIVITY = "the order by activity is refused there"
_SOCKET = "it uses the Unix socket of the server, and the nodes listen on TCP"
_TRIGGER = "it uses a trigger, which Citus does not take"
_SCHEMA = "it compares the whole schema, in which Citus has objects of its own"
_STABLE = "it prepares rows with an UPDATE that Citus refuses"

# By folder, file or test, the longest that fits: why it is skipped; '' if it is not.
REASONS = {
    "tests/app/test_activity.py::test_a_database_that_is_gone_or_read_only": _ACTIVITY,
    "tests/app/test_activity.py::test_a_process_without_the_lock_counts_the_queue": _ACTIVITY,
    "tests/app/test_activity.py::test_one_of_two_processes_works": _ACTIVITY,
    "tests/app/test_activity.py::test_turned_off": _ACTIVITY,
    "tests/app/test_workers.py::test_calls_in_flight_end": _TRIGGER,
    "tests/authorization/test_audit_of_writes.py::test_a_create_whose_caller_left_its_batch_has_a_line": _SHARING,
    "tests/cli/test_cli.py::test_changes": _LOG,
    "tests/cli/test_cli.py::test_serve_starts_and_stops": _LINE,
    "tests/cli/test_erase.py::test_erase": _ERASURE,
    "tests/client/test_channel.py::test_it_connects": _ERASURE,
    "tests/client/test_watch.py::test_all_conversations_are_followed": _LOG,
    "tests/examples/test_indexer.py::test_the_table_is_in_step": _LOG,
    "tests/http/test_listener.py::test_a_caller_that_goes_ends_its_query": _LOCKS,
    "tests/http/test_listener.py::test_a_drain": _LOCKS,
    "tests/http/test_listener.py::test_deadlines": _LOCKS,
    "tests/interop/test_interop.py::test_a_client": _ERASURE,
    "tests/observability/test_metrics.py::test_appends_that_share_a_statement": _SHARING,
    "tests/observability/test_metrics.py::test_creates_that_share_a_statement": _SHARING,
    "tests/observability/test_metrics.py::test_erasures": _ERASURE,
    "tests/observability/test_metrics.py::test_lost_connections_are_counted_with_their_retries": _LOCKS,
    "tests/observability/test_metrics.py::test_the_queue_of_activity": _ACTIVITY,
    "tests/observability/test_tracing.py::test_a_bad_append": _SHARING,
    "tests/observability/test_tracing.py::test_shared_appends": _SHARING,
    "tests/repository/test_readme.py::test_a_life[Lists by activity]": _ACTIVITY,
    "tests/repository/test_readme.py::test_a_watch_of_all_conversations": _LOG,
    "tests/repository/test_readme.py::test_an_erasure": _ERASURE,
    "tests/services/test_delete_many.py::test_a_lost_answer": _STATEMENTS,
    "tests/services/test_delete_many.py::test_watches_end": _LOG,
    "tests/services/test_delete_many.py::test_what_is_locked_waits_for_another_call": _LOCKS,
    "tests/services/test_delete_many.py::test_what_matches_is_deleted": _STATEMENTS,
    "tests/services/test_erasure.py": _ERASURE,
    "tests/services/test_expiry.py::test_appends_stay_heap_only": _PLANS,
    "tests/services/test_expiry.py::test_the_instant": _STABLE,
    "tests/services/test_fork.py::test_a_fork_is_a_new_conversation_to_watches": _LOG,
    "tests/services/test_fork.py::test_a_lost_answer": _STATEMENTS,
    "tests/services/test_fork.py::test_one_statement": _STATEMENTS,
    "tests/services/test_fork.py::test_only_a_few_large_ones_at_once": _STATEMENTS,
    "tests/services/test_rewind.py::test_watches_of_all_conversations_see_deletes": _LOG,
    "tests/services/test_size_limits.py::test_a_stream_reads_nothing_back": _STATEMENTS,
    "tests/services/test_transfer.py::test_a_conversation_that_is_deleted_meanwhile": _STATEMENTS,
    "tests/services/test_watch_access.py::test_a_key_that_is_rotated": _LOG,
    "tests/services/test_watch_access.py::test_a_token_that_expires": _LOG,
    "tests/services/test_watch_conversations.py": _LOG,
    "tests/services/test_watch_items.py::test_a_stream_that_the_purge_overtakes": _TIME,
    "tests/services/test_wire.py::test_a_caller_that_leaves_stops_its_statement": _LOCKS,
    "tests/store/test_activity.py": _ACTIVITY,
    "tests/store/test_activity_plans.py": _ACTIVITY,
    "tests/store/test_appends.py::test_a_caller_that_leaves_its_statement": _LOCKS,
    "tests/store/test_appends.py::test_a_connection_lost_under_a_statement": _SHARING,
    "tests/store/test_appends.py::test_a_statement_has_limits": _SHARING,
    "tests/store/test_appends.py::test_chains_of_expectations[all as expected": _SHARING,
    "tests/store/test_appends.py::test_many_appends_are_one_statement": _SHARING,
    "tests/store/test_authors.py::test_appends_that_share_a_statement": _SHARING,
    "tests/store/test_change_log.py": _LOG,
    "tests/store/test_change_owner.py::test_a_locked_conversation_is_told": _LOCKS,
    "tests/store/test_connector.py::test_a_demoted_primary_is_left_for_the_new_one": _SOCKET,
    "tests/store/test_creates.py::test_a_connection_lost_under_a_statement": _SHARING,
    "tests/store/test_creates.py::test_a_replay_delays_nobody": _SHARING,
    "tests/store/test_creates.py::test_a_statement_has_limits": _SHARING,
    "tests/store/test_creates.py::test_many_creates_are_one_statement": _SHARING,
    "tests/store/test_creates.py::test_one_that_the_database_refuses": _TRIGGER,
    "tests/store/test_erased_imports.py": _ERASURE,
    "tests/store/test_erasing.py": _ERASURE,
    "tests/store/test_erasure_canary.py": _ERASURE,
    "tests/store/test_failures.py::test_a_key_that_a_shard_has": _TRIGGER,
    "tests/store/test_failures.py::test_a_write_that_was_undone_may_be_repeated": _TRIGGER,
    "tests/store/test_failures.py::test_every_sqlstate_has_its_code": _TRIGGER,
    "tests/store/test_filter_statements.py::test_conversations": _STATEMENTS,
    "tests/store/test_list_scale.py": _STABLE,
    "tests/store/test_locked_conversations.py::test_a_lane_keeps_the_order": _SHARING,
    "tests/store/test_locked_conversations.py::test_a_slow_statement": _SHARING,
    "tests/store/test_pgbouncer.py": _PGBOUNCER,
    "tests/store/test_remover.py": _PARTS,
    "tests/store/test_statements.py::test_a_page_by_token_is_one_statement": _STATEMENTS,
    "tests/store/test_statements.py::test_generic_plans": _PLANS,
    "tests/store/test_statements.py::test_one_statement[create with a reference": _STATEMENTS,
    "tests/store/test_statements.py::test_one_statement[fork": _STATEMENTS,
    "tests/store/test_statements.py::test_one_statement[list conversations": _STATEMENTS,
    "tests/store/test_statements.py::test_reads_use_an_index": _PLANS,
    "tests/store/test_statements.py::test_the_log_of_changes_uses_its_index": _LOG,
    "tests/store/test_statements.py::test_the_poll_uses_an_index": _PLANS,
    "tests/store/test_store.py::test_migrated_and_created_tables_are_the_same": _SCHEMA,
    "tests/store/test_store.py::test_purge_keeps_what_is_young": _STABLE,
    "tests/store/test_store.py::test_purge_leaves_no_item_behind": _LOCKS,
    "tests/store/test_store.py::test_text_is_compared_byte_for_byte": _SCHEMA,
    "tests/support/test_fork_server.py::test_it_has_an_environment_of_its_own": _LINE,
    "tests/transport/test_lifecycle.py::test_a_problem_while_waiting_does_not_end_it": _SOCKET,
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


def _reason_for(test: str) -> str:
    found = [name for name in REASONS if test.startswith(name)]
    return REASONS[max(found, key=len)] if found else ""
