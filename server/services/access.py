"""AccessService: what the caller may do, and why somebody may or may not."""

from collections.abc import Iterable

from conversations.v1 import access_service_pb2 as pb
from conversations.v1.access_service_pb2_grpc import AccessServiceServicer

from server.authorization.access import Access, current_access
from server.errors import ConversationNotFound
from server.interceptors.chain import Context
from server.policy.attributes import group_pairs
from server.policy.evaluate import Explanation, Outcome, evaluate, explain
from server.policy.plan import Always, Conditional, Never, Plan
from server.policy.principal import Principal
from server.policy.residual import And, HasId, IdMatches, Not, Or, Owned, Residual, Row, Shares, Unowned
from server.policy.rules import Effect
from server.store.conversations import ConversationStore

_EFFECTS = {Effect.PERMIT: pb.EFFECT_PERMIT, Effect.FORBID: pb.EFFECT_FORBID}
_TRUTHS = {Outcome.MATCHED: pb.TRUTH_TRUE, Outcome.DEPENDS: pb.TRUTH_DEPENDS}  # every other is false
_DECISIONS = {True: pb.DECISION_ALLOWED, False: pb.DECISION_DENIED, None: pb.DECISION_DEPENDS}


class AccessServicer(AccessServiceServicer):
    """Answers from the policy in force, and decides on a row as the SQL statement of that row would."""

    def __init__(self, conversations: ConversationStore) -> None:
        """``conversations``: where the row is read that a request names."""
        self._conversations = conversations

    async def CheckAccess(self, request: pb.CheckAccessRequest, context: Context) -> pb.CheckAccessResponse:
        """Returns those of the permissions that the caller has on a conversation or an item in it.

        None of them on a conversation that the caller cannot read: missing and hidden look the same.
        """
        access = current_access.get()
        try:
            row = await self._row(access, request.conversation_id)
        except ConversationNotFound:
            return pb.CheckAccessResponse()
        return pb.CheckAccessResponse(
            allowed=[each for each in request.permissions if _is_allowed(access, each, row, request.item_id)]
        )

    async def ExplainAccess(self, request: pb.ExplainAccessRequest, context: Context) -> pb.ExplainAccessResponse:
        """Returns the decision on a permission, rule by rule.

        Raises:
            ConversationNotFound: The caller cannot read the conversation that the request names.
        """
        access, permission = current_access.get(), request.permission
        row = None
        if request.conversation_id:
            row = _target(permission, await self._row(access, request.conversation_id), request.item_id)
        subject = _subject(request, access.principal)
        return _explanation(explain(access.policy, subject, permission.resource, permission.action, row))

    async def _row(self, access: Access, conversation_id: str) -> Row:
        """Returns the conversation as rules see it.

        Raises:
            ConversationNotFound: It is missing, or the caller cannot read it.
        """
        if isinstance(access.may("conversation", "read").plan, Never):
            raise ConversationNotFound(conversation_id)
        record = await self._conversations.get(access, conversation_id)
        return Row(record["owner"], frozenset(record["attributes"]), record["id"])


def _is_allowed(access: Access, permission: pb.Permission, row: Row, item_id: str) -> bool:
    plan = access.may(permission.resource, permission.action).plan
    return evaluate(plan, _target(permission, row, item_id))


_NO_ID = "*"  # ids have no such character, so no rule matches it


def _target(permission: pb.Permission, row: Row, item_id: str) -> Row:
    """Returns ``row``, or the item in it, which has the owner and attributes of its conversation."""
    return Row(row.owner, row.attributes, item_id or _NO_ID) if permission.resource == "item" else row


def _subject(request: pb.ExplainAccessRequest, caller: Principal) -> Principal:
    """Returns the principal to explain: the caller, or one of the caller's tenant."""
    if not request.HasField("subject"):
        return caller
    attributes = {name: frozenset(values.values) for name, values in request.subject.attributes.items()}
    return Principal(tenant=caller.tenant, id=request.subject.id, attributes=attributes)


def _explanation(explanation: Explanation) -> pb.ExplainAccessResponse:
    return pb.ExplainAccessResponse(
        decision=_DECISIONS[explanation.allowed],
        plan=_plan(explanation.plan),
        rules=[
            pb.RuleOutcome(
                rule=rule.number,
                effect=_EFFECTS[rule.effect],
                truth=_TRUTHS.get(rule.outcome, pb.TRUTH_FALSE),
                description=rule.description,
            )
            for rule in explanation.rules
        ],
        policy_digest=explanation.digest,
        deciding_rule=explanation.decided_by or 0,
    )


def _plan(plan: Plan) -> pb.Plan:
    if isinstance(plan, Conditional):
        return pb.Plan(kind=pb.PLAN_KIND_CONDITIONAL, condition=_expression(plan.residual))
    return pb.Plan(kind=pb.PLAN_KIND_ALWAYS if isinstance(plan, Always) else pb.PLAN_KIND_NEVER)


def _expression(residual: Residual) -> pb.Expression:
    match residual:
        case Owned():
            return pb.Expression(is_owner=True)
        case Unowned():
            return pb.Expression(is_unowned=True)
        case Shares(pairs):
            matches = (pb.AttributeMatch(attribute=name, values=own) for name, own in group_pairs(pairs).items())
            return _any(pb.Expression(has_any=match) for match in matches)
        case HasId(ids):
            return _any(pb.Expression(has_id=each) for each in ids)
        case IdMatches(pattern):
            return pb.Expression(id_matches=pattern)
        case Not(part):
            expression = pb.Expression()
            getattr(expression, "not").CopyFrom(_expression(part))
            return expression
        case And(parts):
            return pb.Expression(all=pb.Expressions(operands=map(_expression, parts)))
        case Or(parts):
            return _any(map(_expression, parts))


def _any(operands: Iterable[pb.Expression]) -> pb.Expression:
    """Returns "any of ``operands``", which is the operand itself if there is one."""
    listed = list(operands)
    return listed[0] if len(listed) == 1 else pb.Expression(any=pb.Expressions(operands=listed))
