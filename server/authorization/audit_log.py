"""The audit log: one line for each decision, of who asked for what and what came of it.

Refusals always, permits when switched on. Ids and words of the policy only:
nothing of the content, no token, no attribute of a conversation.
"""

import logging
from contextvars import ContextVar
from typing import Any

import structlog

from server.authorization.access import Access
from server.errors import ActionDenied, ConversationNotFound, ItemNotFound, ServiceError
from server.observability.escaping import escape_unprintable
from server.observability.trace_context import current_trace
from server.policy.evaluate import explain
from server.policy.plan import Conditional

# The field tells these lines from all others; no log level hides them.
_Unhidden = structlog.make_filtering_bound_logger(logging.INFO)
log = structlog.wrap_logger(None, wrapper_class=_Unhidden, cache_logger_on_first_use=False, log="audit")
_REFUSALS = (ActionDenied, ConversationNotFound, ItemNotFound)
_NAMED = {"conversation_id": "conversationId", "item_id": "itemId"}  # and as a failure calls them

# The request of this call, once it is decoded: the audit names what it is about.
current_request: ContextVar[Any] = ContextVar("current_request", default=None)


def decided(access: Access, resource: str, action: str, failure: ServiceError | None, *, permits: bool) -> None:
    """Logs a decision; failures that are no refusals are none. ``permits``: log what was allowed, too."""
    if isinstance(failure, _REFUSALS):
        log.warning("refused", **_who(access), **_what(access, resource, action, failure))
    elif failure is None and permits:
        log.info("permitted", **_who(access), **_what(access, resource, action, None))


def _who(access: Access) -> dict[str, str]:
    who = {"principal": escape_unprintable(access.principal.id), "tenant": escape_unprintable(access.principal.tenant)}
    trace = current_trace.get()
    return who | {"trace": trace} if trace else who


def _what(access: Access, resource: str, action: str, failure: ServiceError | None) -> dict[str, Any]:
    if isinstance(failure, ActionDenied):
        resource, action = failure.metadata["resource"], failure.metadata["action"]
    permission = access.may(resource, action)
    found: dict[str, Any] = {
        "resource": resource,
        "action": action,
        "outcome": failure.reason if failure else "PERMITTED",
        "plan": permission.shape,
        "policy": access.policy.digest,
        **_ids(current_request.get(), failure),
    }
    if not isinstance(permission.plan, Conditional):  # else the row decides, inside the statement
        found["rule"] = explain(access.policy, access.principal, resource, action, None).decided_by
    return found


def _ids(request: Any, failure: ServiceError | None) -> dict[str, str]:
    """The ids that were asked for; of what was not found, when that is known."""
    ids = {name: getattr(request, name, "") for name in _NAMED}
    if conversation := getattr(request, "conversation", None):
        ids["conversation_id"] = conversation.id
    if failure:
        ids |= {name: failure.metadata[key] for name, key in _NAMED.items() if key in failure.metadata}
    return {name: escape_unprintable(value) for name, value in ids.items() if value}
