"""The settings of connections that purge, or mark for the purge."""

PURGE_SESSION = {
    "lock_timeout": "5s",
    "application_name": "conversations purge",
    # Each step looks its rows up by their keys. Statistics of a table that grows would make it scan all of it (ADR 10).
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
