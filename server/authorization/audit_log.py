"""The audit log: a line for each decision, with who asked for what and the outcome.

Refusals always, permits when switched on. Ids and words of the policy only: no content, no token,
no attribute of a conversation.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import structlog

from server.authorization.access import Access
from server.errors import ActionDenied, ConversationNotFound, ItemNotFound, OutcomeUnknown, ServiceError
from server.observability.call_context import current_call
from server.observability.escaping import escape_unprintable
from server.observability.trace_context import current_trace
from server.policy.evaluate import explain
from server.policy.plan import Conditional

# The field tells these lines from all others; no log level hides them.
_Unhidden = structlog.make_filtering_bound_logger(logging.INFO)
log = structlog.wrap_logger(None, wrapper_class=_Unhidden, cache_logger_on_first_use=False, log="audit")
_REFUSALS = (ActionDenied, ConversationNotFound, ItemNotFound)
_IDS = {"conversation_id": "conversationId", "item_id": "itemId"}  # and their names in the metadata of an error
_IDS_OF_A_LINE = 100

# The request of this call, once it is decoded: the lines name its ids.
current_request: ContextVar[Any] = ContextVar("current_request", default=None)


class CallAudit:
    """The audit lines of one call.

    Args:
        permits: Write lines for what was permitted.

    Attributes:
        created: The id of the conversation that the call creates.
        has_permit: Whether a line says already that the call was permitted.
        interrupted: Whether the call was cancelled while a write of it ran: nobody knows whether it was committed.
    """

    __slots__ = ("_call", "_permits", "_trace", "created", "has_permit", "interrupted")

    def __init__(self, *, permits: bool) -> None:
        self._permits = permits
        # Kept here: items may be stored by a task that runs the appends of several calls.
        self._call = current_call.get()
        self._trace = current_trace.get()
        self.created = ""
        self.has_permit = False
        self.interrupted = False

    def record_created(self, access: Access, conversation_id: str) -> None:
        """Audits a conversation that was stored.

        Args:
            access: What permitted it.
            conversation_id: Of the conversation.
        """
        self.has_permit = True
        if self._permits:
            self._write(access, "conversation", "create", None, {"conversation_id": conversation_id})

    def record_stored(self, access: Access, conversation_id: str, item_ids: Sequence[str]) -> None:
        """Audits items that were stored.

        Args:
            access: What permitted it.
            conversation_id: Of the conversation.
            item_ids: Of the items.
        """
        self.has_permit = True
        if self._permits:
            ids = {"conversation_id": conversation_id, "item_ids": list(item_ids)}
            self._write(access, "item", "create", None, ids)

    def record_deleted(self, access: Access, conversation_ids: Sequence[str]) -> None:
        """Audits conversations that were deleted by a filter, in lines of `_IDS_OF_A_LINE`.

        Args:
            access: What permitted it.
            conversation_ids: Of the conversations.
        """
        self.has_permit = bool(conversation_ids)
        if self._permits:
            for start in range(0, len(conversation_ids), _IDS_OF_A_LINE):
                ids = {"conversation_ids": list(conversation_ids[start : start + _IDS_OF_A_LINE])}
                self._write(access, "conversation", "delete", None, ids)

    def record(
        self, access: Access, resource: str, action: str, error: ServiceError | None, conversation_id: str = ""
    ) -> None:
        """Audits how a call, or a message of a stream, ended; an error that is no decision has no line.

        Args:
            access: What decided.
            resource: Of the permission that was needed.
            action: Likewise.
            error: None for success.
            conversation_id: Of the message; by default that of the request of the call.
        """
        refused = isinstance(error, _REFUSALS)
        if not refused and not (self._permits and (error is None or isinstance(error, OutcomeUnknown))):
            return
        ids = _request_ids(current_request.get())
        if found := conversation_id or ("" if refused else self.created):
            if self.created and "conversation_id" in ids:
                ids["forked_from"] = ids["conversation_id"]
            ids["conversation_id"] = escape_unprintable(found)
        self._write(access, resource, action, error, ids)

    def _write(
        self, access: Access, resource: str, action: str, error: ServiceError | None, ids: dict[str, Any]
    ) -> None:
        fields = self._caller(access) | _decision(access, resource, action, error, ids)
        with suppress(OSError):  # a log that cannot be written fails no call
            match error:
                case None:
                    log.info("permitted", **fields)
                case OutcomeUnknown():
                    log.warning("unknown", **fields)
                case _:
                    log.warning("refused", **fields)

    def _caller(self, access: Access) -> dict[str, Any]:
        principal, tenant = map(escape_unprintable, (access.principal.id, access.principal.tenant))
        fields = {"principal": principal, "tenant": tenant}
        if call := self._call:
            fields |= {"call": call.id, "method": call.method, "peer": escape_unprintable(call.peer)}
        return fields | {"trace": self._trace} if self._trace else fields


def record_erasure(tenant: str, requested_by: str, erasure_id: str, rows: Mapping[str, int]) -> None:
    """Audits an erasure that is done, in whichever process it was; the subject is not named.

    Args:
        tenant: Of the erasure.
        requested_by: The principal that asked for it; '' for an operator on the command line.
        erasure_id: Of the erasure.
        rows: How many were removed, by kind.
    """
    who = {"principal": escape_unprintable(requested_by), "tenant": escape_unprintable(tenant)}
    with suppress(OSError):
        log.info("erased", **who, resource="tenant", action="erase", erasure_id=erasure_id, **rows)


# Set by the interceptor `Authorization`.
current_audit: ContextVar[CallAudit] = ContextVar("current_audit")


def _decision(
    access: Access, resource: str, action: str, error: ServiceError | None, ids: dict[str, Any]
) -> dict[str, Any]:
    if isinstance(error, ActionDenied):
        resource, action = error.metadata["resource"], error.metadata["action"]
    permission = access.may(resource, action)
    found: dict[str, Any] = {
        "resource": resource,
        "action": action,
        "outcome": error.reason if error else "PERMITTED",
        "plan": permission.shape,
        "policy": access.policy.digest,
        **ids,
        **_error_ids(error),
    }
    if not isinstance(permission.plan, Conditional):
        found["rule"] = explain(access.policy, access.principal, resource, action, None).decided_by
    elif isinstance(error, _REFUSALS):  # the row decided, inside the statement
        found["rules"] = list(access.refusing_rules(resource, action))
    return found


def _request_ids(request: Any) -> dict[str, Any]:
    """The ids that a request names."""
    ids = {name: getattr(request, name, "") for name in _IDS}
    if not ids["conversation_id"] and (conversation := getattr(request, "conversation", None)):
        ids["conversation_id"] = conversation.id
    return {name: escape_unprintable(value) for name, value in ids.items() if value}


def _error_ids(error: ServiceError | None) -> dict[str, str]:
    """The ids of what was not found, where the error has them."""
    metadata = error.metadata if error else {}
    return {name: escape_unprintable(metadata[key]) for name, key in _IDS.items() if key in metadata}
