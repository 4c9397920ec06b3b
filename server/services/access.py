"""AccessService: what the caller may do, and why somebody may or may not."""

from collections.abc import Iterable, Iterator

from conversations.v1 import access_service_pb2 as pb
from conversations.v1.access_service_pb2_grpc import AccessServiceServicer

from server.authorization.access import Access, current_access
from server.errors import ConversationNotFound
from server.interceptors.chain import Context
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
    """Answers from the policy in force; what it says of a row is what the row's statement would decide."""

    def __init__(self, conversations: ConversationStore) -> None:
        self._conversations = conversations

    async def CheckAccess(self, request: pb.CheckAccessRequest, context: Context) -> pb.CheckAccessResponse:
        """The permissions the caller has; none on what it cannot see."""
        access = current_access.get()
        try:
            row = await self._row(access, request.conversation_id)
        except ConversationNotFound:
            return pb.CheckAccessResponse()
        return pb.CheckAccessResponse(
            allowed=[asked for asked in request.permissions if _allowed(access, asked, row, request.item_id)]
        )

    async def ExplainAccess(self, request: pb.ExplainAccessRequest, context: Context) -> pb.ExplainAccessResponse:
        """The decision, rule by rule."""
        access, asked = current_access.get(), request.permission
        row = None
        if request.conversation_id:
            row = _seen_as(asked, await self._row(access, request.conversation_id), request.item_id)
        subject = _subject(request, access.principal)
        return _answer(explain(access.policy, subject, asked.resource, asked.action, row))

    async def _row(self, access: Access, conversation_id: str) -> Row:
        """The conversation as policies see it, if the caller may read it."""
        if isinstance(access.may("conversation", "read").plan, Never):
            raise ConversationNotFound(conversation_id)
        found = await self._conversations.get(access, conversation_id)
        return Row(found["owner"], frozenset(found["attributes"]), found["id"])


def _allowed(access: Access, asked: pb.Permission, row: Row, item_id: str) -> bool:
    plan = access.may(asked.resource, asked.action).plan
    return evaluate(plan, _seen_as(asked, row, item_id))


_NO_ID = "*"  # no id has this sign, so no rule can be about it by its id


def _seen_as(asked: pb.Permission, row: Row, item_id: str) -> Row:
    """``row``, or an item in it: it has the owner and attributes of its conversation."""
    return Row(row.owner, row.attributes, item_id or _NO_ID) if asked.resource == "item" else row


def _subject(request: pb.ExplainAccessRequest, caller: Principal) -> Principal:
    """Who is asked about: the caller, or somebody of the caller's tenant."""
    if not request.HasField("subject"):
        return caller
    attributes = {name: frozenset(values.values) for name, values in request.subject.attributes.items()}
    return Principal(tenant=caller.tenant, id=request.subject.id, attributes=attributes)


def _answer(explanation: Explanation) -> pb.ExplainAccessResponse:
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
            return _any(pb.Expression(has_any=match) for match in _matches(pairs))
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
    """One of ``operands``; a single one stands for itself."""
    each = list(operands)
    return each[0] if len(each) == 1 else pb.Expression(any=pb.Expressions(operands=each))


def _matches(pairs: tuple[str, ...]) -> Iterator[pb.AttributeMatch]:
    """``name=value`` pairs by their name."""
    values: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        values.setdefault(name, []).append(value)
    for name, own in values.items():
        yield pb.AttributeMatch(attribute=name, values=own)
