"""CheckAccess and ExplainAccess: what the caller may do, and why somebody may or may not."""

import itertools
import json
from hashlib import sha256
from typing import Any

import pytest
from conversations.v1 import access_service_pb2 as pb
from google.protobuf.json_format import MessageToDict

from tests.support import reference
from tests.support.access import (
    ANN,
    BOB,
    CALLERS,
    EVE,
    EVERYTHING,
    OTHER_ANN,
    POLICIES,
    READERS,
    RITA,
    ROWS,
    GuardedService,
    caller,
)
from tests.support.build import append, delete, delete_item, get, get_item, sets, update, user_message
from tests.support.problems import problem
from tests.support.reference import What
from tests.support.service import recorded_statements

MISSING = "conv_" + "9" * 16
ASKED = [("conversation", action) for action in EVERYTHING[:5]] + [("item", action) for action in EVERYTHING[:4]]


def check(conversation_id: str, *asked: tuple[str, str], item_id: str = "") -> pb.CheckAccessRequest:
    permissions = [pb.Permission(resource=resource, action=action) for resource, action in asked]
    return pb.CheckAccessRequest(conversation_id=conversation_id, permissions=permissions, item_id=item_id)


def explain(resource: str, action: str, **fields: Any) -> pb.ExplainAccessRequest:
    return pb.ExplainAccessRequest(permission=pb.Permission(resource=resource, action=action), **fields)


def given(response: pb.CheckAccessResponse) -> list[tuple[str, str]]:
    return [(each.resource, each.action) for each in response.allowed]


# --- CheckAccess


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CALLERS)
async def test_check_is_the_reference(guarded: GuardedService, policy: str, name: str) -> None:
    """The subset that the policy allows, in the order asked; nothing on what the caller does not see."""
    guarded.obey(POLICIES[policy])
    who = CALLERS[name]

    def may(kind: str, action: str, row: dict[str, Any], row_id: str) -> bool:
        held = {name: frozenset(values) for name, values in row.get("attributes", {}).items()}
        return reference.allowed(POLICIES[policy], who.who, kind, action, What(row["owner"], held, row_id))

    for row, item in itertools.product(ROWS.values(), ("msg_open", "msg_secret", "")):
        conversation_id = await guarded.row(**row)
        hidden = row.get("deleted") or who.tenant != "acme" or not may("conversation", "read", row, conversation_id)
        expected = [
            (kind, action)
            for kind, action in ASKED[::-1]
            if not hidden and may(kind, action, row, item if kind == "item" else conversation_id)
        ]
        answer = await guarded.by(who).CheckAccess(check(conversation_id, *ASKED[::-1], item_id=item))
        assert expected == given(answer), (row, item)
    assert [] == given(await guarded.by(who).CheckAccess(check(MISSING, *ASKED)))


async def test_check_is_what_happens(guarded: GuardedService) -> None:
    """What it allows is done, what it leaves out is refused."""
    guarded.obey(POLICIES["auditor"])
    calls = [
        (("conversation", "read"), lambda client, row: client.GetConversation(get(row))),
        (("conversation", "update"), lambda client, row: client.UpdateConversation(update(row, metadata={"a": "1"}))),
        (("conversation", "share"), lambda client, row: client.UpdateConversation(update(row, "attributes"))),
        (("item", "read"), lambda client, row: client.GetItem(get_item(row, "msg_open"))),
        (("item", "create"), lambda client, row: client.CreateItems(append(row, user_message()))),
        (("item", "delete"), lambda client, row: client.DeleteItem(delete_item(row, "msg_open"))),
        (("conversation", "delete"), lambda client, row: client.DeleteConversation(delete(row))),
    ]
    for who, (asked, call) in itertools.product(CALLERS.values(), calls):
        row = await guarded.row("ann", {"teams": ["red"]})
        client = guarded.by(who)
        if given(await client.CheckAccess(check(row, asked, item_id="msg_open"))):
            await call(client, row)
        else:
            assert (await problem(call(client, row))).code in {"NOT_FOUND", "PERMISSION_DENIED"}, (who, asked)


async def test_check_costs_one_statement(guarded: GuardedService) -> None:
    """However many questions; and none where nothing can be read."""
    row = await guarded.row("ann")
    with recorded_statements(guarded.database) as texts:
        await guarded.by(ANN).CheckAccess(check(row, *ASKED, *ASKED))
    assert 1 == len(texts)
    guarded.obey(POLICIES["deny all"])
    with recorded_statements(guarded.database) as texts:
        assert [] == given(await guarded.by(ANN).CheckAccess(check(row, *ASKED)))
    assert [] == texts


async def test_check_without_an_item(guarded: GuardedService) -> None:
    """An item about which no rule says anything by its id, also where a pattern would match nothing at all."""
    guarded.obey(
        [
            {"permit": {"actions": ["read"], "resource": "conversation::*"}},
            {"permit": {"actions": ["read"], "resource": "regex:item::a*"}},
            {"permit": {"actions": ["delete"], "resource": "item::a"}},
            {"permit": {"actions": ["create"], "resource": "item::*"}},
        ]
    )
    row, asked = await guarded.row("ann"), [("item", "read"), ("item", "delete"), ("item", "create")]
    assert asked == given(await guarded.by(BOB).CheckAccess(check(row, *asked, item_id="a")))
    assert asked[2:] == given(await guarded.by(BOB).CheckAccess(check(row, *asked)))


async def test_check_of_the_policy(guarded: GuardedService) -> None:
    """Whether the caller may ask for explanations."""
    guarded.obey([*READERS, {"permit": {"actions": ["explain"], "resource": "policy::*", "principal": "bob"}}])
    row = await guarded.row("ann", {"teams": ["red"]})
    for who, expected in ((BOB, [("policy", "explain")]), (ANN, [])):
        assert expected == given(await guarded.by(who).CheckAccess(check(row, ("policy", "explain"))))


async def test_check_is_the_same_for_all_that_is_hidden(guarded: GuardedService) -> None:
    """Missing, deleted, another tenant's and unreadable conversations give one answer, byte for byte."""
    kinds = [
        await guarded.row("ann"),
        await guarded.row("eve", deleted=True),
        await guarded.row("eve", tenant="umbrella"),
        MISSING,
    ]
    answers = [await guarded.by(EVE).CheckAccess(check(each, *ASKED, item_id="msg_open")) for each in kinds]
    assert [b""] * 4 == [each.SerializeToString() for each in answers]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (check("conv_a"), "permissions"),
        (check("conv_a", *[("item", "read")] * 21), "permissions"),
        (check("a", ("item", "read")), "conversation_id"),
        (check("conv_a", ("message", "read")), "permissions[0].resource"),
        (check("conv_a", ("item", "write")), "permissions[0].action"),
        (check("conv_a", ("item", "read"), item_id="a b"), "item_id"),
    ],
)
async def test_check_refuses_what_is_no_question(guarded: GuardedService, request_: Any, field: str) -> None:
    """A resource or an action that nobody has is INVALID_ARGUMENT, not a no."""
    refused = await problem(guarded.by(ANN).CheckAccess(request_))
    assert ("INVALID_ARGUMENT", [field]) == (refused.code, list(refused.fields))


# --- ExplainAccess

RULES = [
    {"forbid": {"actions": ["delete"]}, "when": "user with intern in roles", "description": "not interns"},
    {"permit": {"actions": ["read", "delete"], "principal": "bob"}, "when": "user in owners teams"},
    {"permit": {"actions": ["read"], "resource": "item::msg_open"}, "description": "one item"},
    {"permit": {"actions": ["read", "delete"]}, "when": ["user is owner"]},
    {"permit": {"actions": ["explain"], "resource": "policy::*"}, "unless": "user with nosy in roles"},
    {"permit": {"actions": ["share"]}, "when": "user with boss in roles"},
]
TEXT = json.dumps(RULES)
TRUE, FALSE, DEPENDS = pb.TRUTH_TRUE, pb.TRUTH_FALSE, pb.TRUTH_DEPENDS


def truths(response: pb.ExplainAccessResponse) -> list[int]:
    return [rule.truth for rule in response.rules]


async def test_explain_a_condition(guarded: GuardedService) -> None:
    """What is left for the row is a tree of the subject's own values; the rules stand beside it as in the file."""
    guarded.obey(TEXT)
    answer = await guarded.by(BOB).ExplainAccess(explain("conversation", "delete"))
    assert (pb.DECISION_DEPENDS, pb.PLAN_KIND_CONDITIONAL, 0) == (
        answer.decision,
        answer.plan.kind,
        answer.deciding_rule,
    )
    assert [FALSE, DEPENDS, FALSE, DEPENDS, FALSE, FALSE] == truths(answer)
    operands = [MessageToDict(each) for each in answer.plan.condition.any.operands]
    assert {"hasAny": {"attribute": "teams", "values": ["red"]}} in operands
    assert {"isOwner": True} in operands
    assert 2 == len(operands)
    assert [1, 2, 3, 4, 5, 6] == [rule.rule for rule in answer.rules]
    assert [pb.EFFECT_FORBID, *[pb.EFFECT_PERMIT] * 5] == [rule.effect for rule in answer.rules]
    assert ["not interns", "", "one item", "", "", ""] == [rule.description for rule in answer.rules]
    assert sha256(TEXT.encode()).hexdigest() == answer.policy_digest


async def test_explain_always_and_never(guarded: GuardedService) -> None:
    """Plans that no row changes name the rule that decides, where there is one."""
    guarded.obey(TEXT)
    boss = await guarded.by(caller("zoe", roles="boss")).ExplainAccess(explain("conversation", "share"))
    assert (pb.DECISION_ALLOWED, pb.PLAN_KIND_ALWAYS, 6) == (boss.decision, boss.plan.kind, boss.deciding_rule)
    intern = await guarded.by(caller("zoe", roles="intern")).ExplainAccess(explain("item", "delete"))
    assert (pb.DECISION_DENIED, pb.PLAN_KIND_NEVER, 1) == (intern.decision, intern.plan.kind, intern.deciding_rule)
    nobody = await guarded.by(ANN).ExplainAccess(explain("conversation", "update"))
    assert (pb.DECISION_DENIED, pb.PLAN_KIND_NEVER, 0) == (nobody.decision, nobody.plan.kind, nobody.deciding_rule)
    policy = await guarded.by(ANN).ExplainAccess(explain("policy", "explain"))
    assert (pb.DECISION_ALLOWED, pb.PLAN_KIND_ALWAYS, 5) == (policy.decision, policy.plan.kind, policy.deciding_rule)


async def test_explain_on_a_row(guarded: GuardedService) -> None:
    """On a conversation, and on an item of it, the first rule that matches decides."""
    guarded.obey(TEXT)
    row = await guarded.row("ann", {"teams": ["red"]})
    for who, resource, item, decision, decider in [
        (BOB, "conversation", "", pb.DECISION_ALLOWED, 2),
        (ANN, "conversation", "", pb.DECISION_ALLOWED, 4),
        (ANN, "item", "msg_open", pb.DECISION_ALLOWED, 3),
        (ANN, "item", "msg_secret", pb.DECISION_ALLOWED, 4),
    ]:
        answer = await guarded.by(who).ExplainAccess(explain(resource, "read", conversation_id=row, item_id=item))
        assert (decision, decider) == (answer.decision, answer.deciding_rule), (who, item)
        assert DEPENDS not in truths(answer)


async def test_explain_for_another(guarded: GuardedService) -> None:
    """The subject is of the caller's tenant; what the caller sees is asked about, with the subject's eyes."""
    guarded.obey(TEXT)
    row = await guarded.row("ann", {"teams": ["red"]})
    asked = explain("conversation", "read", conversation_id=row, subject=pb.Subject(id="eve"))
    denied = await guarded.by(ANN).ExplainAccess(asked)
    assert (pb.DECISION_DENIED, 0) == (denied.decision, denied.deciding_rule)
    bob = pb.Subject(id="bob", attributes=sets(teams=["red", "green"]))
    allowed = await guarded.by(ANN).ExplainAccess(explain("conversation", "read", conversation_id=row, subject=bob))
    assert (pb.DECISION_ALLOWED, 2) == (allowed.decision, allowed.deciding_rule)
    hidden = explain("conversation", "read", conversation_id=row, subject=pb.Subject(id="ann"))
    for who in (EVE, OTHER_ANN):
        assert "CONVERSATION_NOT_FOUND" == (await problem(guarded.by(who).ExplainAccess(hidden))).reason


async def test_explain_needs_to_see_the_conversation(guarded: GuardedService) -> None:
    """Unseen, deleted and missing conversations are one NOT_FOUND, also for those who may read none."""
    guarded.obey([{"permit": {"actions": ["explain"], "resource": "policy::*"}}, *READERS])
    kinds = [await guarded.row("ann"), await guarded.row("eve", deleted=True), MISSING]
    told = set()
    for rules in (None, [{"permit": {"actions": ["explain"], "resource": "policy::*"}}]):
        if rules:
            guarded.obey(rules)
        for each in kinds:
            refused = await problem(
                guarded.by(EVE).ExplainAccess(explain("conversation", "read", conversation_id=each))
            )
            told.add((refused.code, refused.message.replace(each, "ID"), refused.reason, refused.details))
    assert 1 == len(told)
    assert "NOT_FOUND" == told.pop()[0]


async def test_explain_takes_a_permission_of_its_own(guarded: GuardedService) -> None:
    """Without explain on the policy it is refused before anything is looked up, about oneself too."""
    guarded.obey(TEXT)
    row = await guarded.row("ann")
    nosy = caller("ann", roles="nosy")
    with recorded_statements(guarded.database) as texts:
        for asked in (explain("conversation", "read"), explain("conversation", "read", conversation_id=row)):
            refused = await problem(guarded.by(nosy).ExplainAccess(asked))
            assert ("PERMISSION_DENIED", {"resource": "policy", "action": "explain"}) == (
                refused.code,
                refused.metadata,
            )
    assert [] == texts


async def test_explain_tells_no_values_of_the_row(guarded: GuardedService) -> None:
    """Owner, attributes, metadata and ids of rows are not in the answer; nor is SQL."""
    guarded.obey([{"permit": {"actions": EVERYTHING}, "when": "user in owners teams"}, *POLICIES["secret item"]])
    row = await guarded.row("ownersname", {"teams": ["red", "crimson"], "projects": ["manhattan"]})
    for who, kind in itertools.product((BOB, RITA, ANN), ("conversation", "item")):
        asked = explain(kind, "read", conversation_id=row, item_id="msg_open")
        try_it = await guarded.by(who).CheckAccess(check(row, ("conversation", "read")))
        if not given(try_it):
            continue
        answer = str(await guarded.by(who).ExplainAccess(asked)).lower()
        words = ("ownersname", "crimson", "manhattan", row, "msg_open", "select", "$1", "&&", "projects")
        assert [] == [word for word in words if word in answer]


async def test_explain_is_the_reference(guarded: GuardedService) -> None:
    """Its decision is the policy's for every caller and row."""
    grant = [{"permit": {"actions": ["explain"], "resource": "policy::*"}}]
    everybody = caller("root", roles="root")
    for name, rules in POLICIES.items():
        full: list[Any] = [
            {"permit": {"actions": ["read", "explain"]}, "when": "user with root in roles"},
            *grant,
            *rules,
        ]
        if name == "default":
            continue
        guarded.obey(full)
        for row in list(ROWS.values())[:3]:
            conversation_id = await guarded.row(**row)
            held = {key: frozenset(values) for key, values in row.get("attributes", {}).items()}
            what = What(row["owner"], held, "msg_secret")
            for who, action in itertools.product(CALLERS.values(), EVERYTHING[:5]):
                number = reference.decider(full, who.who, "item", action, what)
                expected = number is not None and "permit" in full[number - 1]
                own = sets(**{key: list(values) for key, values in who.attributes.items()})
                asked = explain("item", action, conversation_id=conversation_id, item_id="msg_secret")
                asked.subject.CopyFrom(pb.Subject(id=who.id, attributes=own))
                answer = await guarded.by(everybody).ExplainAccess(asked)
                found = (answer.decision, answer.deciding_rule)
                assert (pb.DECISION_ALLOWED if expected else pb.DECISION_DENIED, number or 0) == found, (name, who, row)
