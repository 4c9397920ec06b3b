"""Writes that were cancelled while they ran, for the audit log."""

import asyncio

from server.authorization.audit_log import current_audit
from server.store.connection.execution import Execute, Execution, Rows


async def mark_interrupted_write(execute: Execute, execution: Execution) -> Rows:
    """Runs a statement; if its call is cancelled meanwhile, the audit learns that the outcome is unknown.

    Statements for several calls run in a task that no caller cancels: each append reports itself that it is stored.
    """
    try:
        return await execute(execution)
    except asyncio.CancelledError:
        audit = current_audit.get(None)
        if audit and execution.statement.kind != "read":
            audit.interrupted = True
        raise
