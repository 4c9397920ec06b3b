"""Plans: exact for every policy, small, and split into a shape and values."""

from collections import Counter
from itertools import product
from random import Random

import pytest

from server.authorization.policy_file import ONE_USER
from server.policy.attributes import attribute_pairs, group_pairs
from server.policy.evaluate import Outcome, evaluate, explain, refusing_rules
from server.policy.load import load
from server.policy.plan import Always, Conditional, Never, Plan, plan
from server.policy.principal import Principal, pairs
from server.policy.residual import (
    And,
    Folded,
    HasId,
    IdMatches,
    Not,
    Or,
    Owned,
    Residual,
    Row,
    Shares,
    Unowned,
    all_of,
    any_of,
    negation,
    reads_row_id,
)
from server.policy.rules import DEFAULT
from tests.support import reference
from tests.support.worlds import ACTIONS, KINDS, SINGLETON, SINGLETON_ACTIONS, World, random_world, stored, who

ANN = Principal("", "ann", {"teams": frozenset({"b", "a"}), "roles": frozenset({"user"}), "projects": frozenset()})
BOB = Principal("", "bob", {"teams": frozenset({"c"}), "namespaces": frozenset({"n"})})
NOBODY = Principal("", "")

OWNED, TEAMS = Owned("ann"), Shares(("teams=a", "teams=b"))
ONE, TWO, LIKE = HasId(("1",)), HasId(("2",)), IdMatches("^a.*$")


def planned(rules: str, principal: Principal = ANN, resource: str = "conversation", action: str = "read") -> Plan:
    return plan(load(rules), principal, resource, action)


def permit(guard: str, resource: str = "*") -> str:
    return f"- permit: {{actions: [read], resource: '{resource}'}}\n{'  ' * bool(guard)}{guard}\n"


def forbid(guard: str, resource: str = "*") -> str:
    return permit(guard, resource).replace("permit", "forbid")


@pytest.mark.parametrize(
    ("guard", "left"),
    [
        ("", True),
        ("when: user is owner", OWNED),
        ("when: user is not owner", Not(OWNED)),
        ("when: user in owners teams", TEAMS),
        ("when: user not in owners teams", Not(TEAMS)),
        ("when: user in owners namespaces", False),  # ann has none
        ("when: user not in owners namespaces", True),
        ("when: user in owners projects", False),  # ann has the empty set
        ("when: user with a in teams", True),
        ("when: user with c in teams", False),
        ("when: user with a in namespaces", False),
        ("when: user with a not in teams", False),
        ("when: user with c not in teams", True),
        ("when: user with a not in namespaces", True),
        ("when: resource is unowned", Unowned()),
        ("when: [user is owner, user in owners teams]", And((OWNED, TEAMS))),
        ("when: [user is owner, user with c in teams]", False),
        ("when: [user is owner, user with a in teams]", OWNED),
        ("unless: user is owner", Not(OWNED)),
        ("unless: user is not owner", OWNED),
        ("unless: user with a in teams", False),
        ("unless: user with c in teams", True),
        ("unless: [user is owner, user with c in teams]", True),
        ("unless: [user is owner, user in owners teams]", Not(And((OWNED, TEAMS)))),
        ("unless: [user is not owner, user not in owners teams]", Or((TEAMS, OWNED))),
    ],
)
def test_guards(guard: str, left: Folded) -> None:
    """What the principal decides is folded; what is left speaks of the row."""
    expected = Conditional(left) if not isinstance(left, bool) else (Never(), Always())[left]
    assert expected == planned(permit(guard))


@pytest.mark.parametrize(
    ("resource", "kind", "expected"),
    [
        ("*", "conversation", Always()),
        ("*", "item", Always()),
        ("*", "nothing", Never()),
        ("conversation::*", "conversation", Always()),
        ("conversation::*", "item", Never()),
        ("conversation::c", "conversation", Conditional(HasId(("c",)))),
        ("conversation::c", "item", Never()),
        ("regex:item::a.*", "item", Conditional(LIKE)),
        ("regex:item::a.*", "conversation", Never()),
        ("model::*", "conversation", Never()),
    ],
)
def test_scope_of_resources(resource: str, kind: str, expected: Plan) -> None:
    """A rule is about the types and ids it names only."""
    assert expected == planned(permit("", resource), resource=kind)


@pytest.mark.parametrize(
    ("principal", "action", "expected"),
    [(ANN, "read", Always()), (BOB, "read", Never()), (NOBODY, "read", Never()), (ANN, "update", Never())],
)
def test_scope_of_principal_and_action(principal: Principal, action: str, expected: Plan) -> None:
    """A rule is about the principal and the actions it names only."""
    assert expected == planned("- permit: {principal: ann, actions: read}", principal, action=action)


def test_no_principal_owns_the_unowned() -> None:
    """A principal without an id is not the owner of the rows that nobody owns."""
    assert Never() == planned(permit("when: user is owner"), NOBODY)
    assert Always() == planned(permit("when: user is not owner"), NOBODY)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (forbid("") + permit(""), Never()),
        (permit("") + forbid(""), Always()),
        (forbid("when: user is owner"), Never()),
        (permit("when: user is owner") + forbid("when: user in owners teams"), Conditional(OWNED)),
        (permit("when: user is owner") + permit("when: user in owners teams"), Conditional(Or((TEAMS, OWNED)))),
        (forbid("when: user is owner") + permit(""), Conditional(Not(OWNED))),
        (
            forbid("when: user is owner") + permit("when: user in owners teams"),
            Conditional(And((TEAMS, Not(OWNED)))),
        ),
        (
            permit("", "conversation::1") + forbid("when: user is owner") + permit("when: user in owners teams"),
            Conditional(Or((ONE, And((TEAMS, Not(OWNED)))))),
        ),
        (
            forbid("", "conversation::1") + permit("", "conversation::2") + forbid("", "item::*") + permit(""),
            Conditional(Not(ONE)),
        ),
        (permit("when: user is owner") + permit("when: user is not owner"), Always()),
        (forbid("when: user is owner") + forbid("when: user is not owner") + permit(""), Never()),
        (forbid("when: user is owner") + permit("when: user is owner"), Never()),
        (permit("when: user is owner") + permit("") + forbid(""), Always()),
        (permit("", "conversation::2") + permit("", "conversation::1"), Conditional(HasId(("1", "2")))),
    ],
)
def test_first_match(rules: str, expected: Plan) -> None:
    """The first rule that matches decides, and the tree says no more than that takes."""
    assert expected == planned(rules)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], False),
        ([False, OWNED], OWNED),
        ([OWNED, True], True),
        ([OWNED, OWNED], OWNED),
        ([OWNED, Not(OWNED)], True),
        ([OWNED, LIKE], Or((OWNED, LIKE))),
        ([LIKE, Or((OWNED, ONE)), TWO], Or((HasId(("1", "2")), LIKE, OWNED))),
        ([Shares(("teams=b",)), OWNED, Shares(("roles=a", "teams=b"))], Or((Shares(("roles=a", "teams=b")), OWNED))),
        ([ONE, TEAMS], Or((ONE, TEAMS))),
        ([Not(OWNED), Not(LIKE)], Or((Not(OWNED), Not(LIKE)))),
        ([And((OWNED, LIKE)), And((OWNED, LIKE))], And((OWNED, LIKE))),
    ],
)
def test_any_of(parts: list[Folded], expected: Folded) -> None:
    """Disjunctions are flat, without repetition, and ask for all ids and all pairs at once."""
    assert expected == any_of(parts)


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], True),
        ([True, OWNED], OWNED),
        ([OWNED, False], False),
        ([OWNED, OWNED], OWNED),
        ([OWNED, Not(OWNED)], False),
        ([Not(OWNED), OWNED], False),
        ([Not(OWNED)], Not(OWNED)),
        ([OWNED, And((LIKE, TEAMS))], And((OWNED, LIKE, TEAMS))),
        ([Not(ONE), OWNED, Not(TWO)], And((OWNED, Not(HasId(("1", "2")))))),
        ([And((LIKE, Not(ONE))), Not(TWO)], And((LIKE, Not(HasId(("1", "2")))))),
        ([Not(OWNED), Not(LIKE)], Not(Or((OWNED, LIKE)))),
        ([LIKE, Not(Or((OWNED, LIKE)))], False),
        ([Not(Or((Not(OWNED), LIKE))), Not(OWNED)], False),
        ([Not(OWNED), Not(Not(OWNED).part), Or((OWNED, LIKE))], And((Or((OWNED, LIKE)), Not(OWNED)))),
        ([Not(And((OWNED, LIKE))), And((OWNED, LIKE))], And((OWNED, LIKE, Not(And((OWNED, LIKE)))))),
    ],
)
def test_all_of(parts: list[Folded], expected: Folded) -> None:
    """Conjunctions are flat, without repetition, and gather what must not hold in one Not."""
    assert expected == all_of(parts)


def test_negation() -> None:
    """Not never stands on Not."""
    assert [False, True, OWNED, Not(OWNED)] == [negation(part) for part in (True, False, Not(OWNED), OWNED)]


def test_default_policy() -> None:
    """The default policy is one overlap, the owner, and rows of nobody, for every action."""
    made = plan(DEFAULT, ANN, "conversation", "delete")
    shared = Shares(("roles=user", "teams=a", "teams=b"))
    assert Conditional(Or((shared, OWNED, Unowned()))) == made


def test_shape_and_values() -> None:
    """Callers with other values share a shape; values come in its order, one for each leaf that takes one."""
    rules = (
        permit("", "conversation::1")
        + forbid("unless: [user is owner, resource is unowned]", "regex:conversation::a.*")
        + permit("when: user in owners teams")
    )
    ann, bob = planned(rules), planned(rules, BOB)
    assert isinstance(ann, Conditional)
    assert isinstance(bob, Conditional)
    assert ann.shape == bob.shape == "or(id,and(shares,not(and(id~,not(and(owned,unowned))))))"
    assert ann.values == (("1",), ("teams=a", "teams=b"), "^a.*$", "ann")
    assert bob.values == (("1",), ("teams=c",), "^a.*$", "bob")


def _rebuilt(node: Residual, values: list[str | tuple[str, ...]]) -> Residual:
    """``node`` with its values taken from ``values``, as a statement takes its parameters."""
    match node:
        case Unowned():
            return node
        case Not(part):
            return Not(_rebuilt(part, values))
        case And(parts):
            return And(tuple(_rebuilt(part, values) for part in parts))
        case Or(parts):
            return Or(tuple(_rebuilt(part, values) for part in parts))
        case leaf:
            return type(leaf)(values.pop(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("residual", "reads"),
    [
        (OWNED, False),
        (Unowned(), False),
        (TEAMS, False),
        (ONE, True),
        (LIKE, True),
        (Not(OWNED), False),
        (Not(ONE), True),
        (And((OWNED, TEAMS)), False),
        (And((OWNED, Not(LIKE))), True),
        (Or((OWNED, TEAMS)), False),
        (Or((OWNED, And((TEAMS, ONE)))), True),
    ],
)
def test_whether_the_id_matters(residual: Residual, *, reads: bool) -> None:
    """A plan reads the id of a row if any of its leaves does."""
    assert (reads, reads) == (reads_row_id(residual), Conditional(residual).reads_row_id)


def test_values_belong_to_the_shape() -> None:
    """A tree of one caller with the values of another, of the same shape, is the other's tree."""
    trees: dict[str, Conditional] = {}
    swapped = 0
    for seed in range(300):
        world = random_world(Random(seed))
        for principal in world.principals:
            made = plan(world.policy, principal, "conversation", "read")
            if isinstance(made, Conditional):
                twin = trees.setdefault(made.shape, made)
                values = list(made.values)
                assert made.residual == _rebuilt(twin.residual, values)
                assert not values
                swapped += twin.residual != made.residual
    assert swapped > 100


def decisions(world: World, rng: Random) -> Counter[str]:
    """The engine held against the reference for some actions of each caller on all rows."""
    seen: Counter[str] = Counter()
    for principal in world.principals:
        kind, action = rng.choice(KINDS), rng.choice(ACTIONS)
        made = plan(world.policy, principal, kind, action)
        seen[type(made).__name__] += 1
        for row in world.rows:
            expected = reference.allowed(world.rules, who(principal), kind, action, row)
            assert expected == evaluate(made, stored(row)), (world.rules, principal, kind, action, row)
            seen["allowed" if expected else "denied"] += 1
    return seen


def test_engine_equals_reference() -> None:
    """For random policies, callers and rows, engine and reference agree on every row."""
    seen: Counter[str] = Counter()
    for seed in range(280):
        rng = Random(seed)
        seen += decisions(random_world(rng), rng)
    cases, plans = seen["allowed"] + seen["denied"], seen["Always"] + seen["Never"] + seen["Conditional"]
    assert cases >= 20_000
    # Agreement on worlds where nothing is at stake would prove nothing.
    assert 0.2 < seen["allowed"] / cases < 0.6
    assert 0.3 < seen["Conditional"] / plans < 0.7
    assert seen["Always"] / plans > 0.05
    assert seen["Never"] / plans > 0.1


def test_explanations_equal_reference() -> None:
    """The rule that an explanation names is the first that matches; without a row nothing wrong is said."""
    for seed in range(1000, 1040):
        world = random_world(Random(seed))
        rules = world.rules
        for principal in world.principals:
            without = explain(world.policy, principal, "item", "read", None)
            for row in world.rows:
                told = explain(world.policy, principal, "item", "read", stored(row))
                allowed = reference.allowed(rules, who(principal), "item", "read", row)
                assert told.allowed is allowed
                assert without.allowed in {None, allowed}
                assert allowed or told.decided_by in refusing_rules(world.policy, principal, "item", "read")
                if rules:
                    number = reference.decider(rules, who(principal), "item", "read", row)
                    assert told.decided_by == number
                    assert without.decided_by in {None, number}


def test_explanation() -> None:
    """Each rule is there with what became of it, the plan, and the digest; the row's values are not."""
    policy = load(
        "- permit: {actions: [delete]}\n"
        "- permit: {actions: [read]}\n  when: user with z in teams\n"
        "- forbid: {actions: [read], resource: 'conversation::x'}\n  description: not x\n"
        "- permit: {actions: [read]}\n  when: user is owner\n"
        "- permit: {actions: [read]}\n"
        "- forbid: {actions: [read]}\n"
    )
    told = explain(policy, ANN, "conversation", "read", Row("ann", frozenset({"teams=secret"}), "y"))
    x = HasId(("x",))
    assert [
        (1, "permit", Outcome.OUT_OF_SCOPE, None, ""),
        (2, "permit", Outcome.NO_MATCH, None, ""),
        (3, "forbid", Outcome.NO_MATCH, x, "not x"),
        (4, "permit", Outcome.MATCHED, OWNED, ""),
        (5, "permit", Outcome.NOT_REACHED, None, ""),
        (6, "forbid", Outcome.NOT_REACHED, None, ""),
    ] == [(rule.number, rule.effect, rule.outcome, rule.condition, rule.description) for rule in told.rules]
    assert (told.allowed, told.decided_by, told.digest) == (True, 4, policy.digest)
    assert told.plan == Conditional(Not(x))
    assert "secret" not in repr(told)

    without = explain(policy, ANN, "conversation", "read", None)
    assert [Outcome.OUT_OF_SCOPE, Outcome.NO_MATCH, Outcome.DEPENDS, Outcome.DEPENDS, Outcome.MATCHED] == [
        rule.outcome for rule in without.rules[:5]
    ]
    assert (without.allowed, without.decided_by) == (None, None)

    everyone = explain(load(permit("")), ANN, "conversation", "read", None)
    assert (everyone.allowed, everyone.decided_by) == (True, 1)
    no_one = explain(load(permit("")), ANN, "conversation", "delete", None)
    assert (no_one.allowed, no_one.decided_by) == (False, None)


@pytest.mark.parametrize(
    "rules, expected",
    [
        (permit("when: user is owner"), (None,)),
        (forbid("unless: user is owner") + permit(""), (1,)),
        (permit("when: user is owner") + forbid("") + forbid(""), (2,)),
        (forbid("when: user with z in roles") + forbid("", "item::*") + permit("when: user is owner"), (None,)),
        (forbid("", "conversation::x") + permit("when: user is owner"), (1, None)),
    ],
)
def test_rules_that_refuse(rules: str, expected: tuple[int | None, ...]) -> None:
    """Those that forbid, up to the first that matches every row; none if a row may pass them all."""
    assert expected == refusing_rules(load(rules), ANN, "conversation", "read")


def test_the_policy_has_no_rows() -> None:
    """Whether a principal may have the policy explained is always known: it is nobody's and shared with no one."""
    assert Always() == plan(DEFAULT, ANN, "policy", "explain")
    explained = permit("when: user is owner", "policy::*").replace("read", "explain")
    assert Never() == planned(explained, resource="policy", action="explain")
    told = explain(load(explained), ANN, "policy", "explain", Row("ann", frozenset(), "x"))
    assert (told.allowed, told.rules[0].outcome) == (False, Outcome.NO_MATCH)


@pytest.mark.parametrize("action", ["import", "erase"])
def test_only_a_rule_that_names_it_permits_an_action_on_the_tenant(action: str) -> None:
    """Not the default policy, although the tenant is unowned; the one user without identity may do it."""
    assert Never() == plan(DEFAULT, ANN, "tenant", action)
    assert Always() == plan(ONE_USER, Principal("", "local"), "tenant", action)
    named = permit("", "tenant::*").replace("read", action)
    assert Always() == planned(named, resource="tenant", action=action)
    for other in (permit(""), permit("when: user is owner").replace("read", action)):
        assert Never() == planned(other, resource="tenant", action=action)


@pytest.mark.slow
def test_singletons_equal_reference() -> None:
    """For random policies and callers, engine and reference agree about the policy and the tenant."""
    seen: Counter[bool] = Counter()
    for seed in range(400):
        rng = Random(seed)
        world = random_world(rng)
        for principal, kind, action in product(world.principals, ("policy", "tenant"), SINGLETON_ACTIONS):
            expected = reference.allowed(world.rules, who(principal), kind, action, SINGLETON)
            assert expected == explain(world.policy, principal, kind, action, None).allowed
            seen[expected] += 1
    assert min(seen.values()) > 1_000, seen


def test_evaluate_takes_plans_and_residuals() -> None:
    """A plan, and the residual in it, say the same of a row."""
    row = Row(ANN.id, pairs(ANN.attributes), "1")
    assert row == Row("ann", frozenset({"teams=a", "teams=b", "roles=user"}), "1")
    verdicts = [evaluate(each, row) for each in (Always(), Never(), Conditional(OWNED), OWNED, Owned("bob"))]
    assert [True, False, True, True, False] == verdicts


@pytest.mark.parametrize("turns", [8, 9, 127])
def test_depth_is_bounded(turns: int) -> None:
    """However often a policy turns between permit and forbid, SQL can be written by recursion; and it is exact."""
    rules = "".join(
        permit("when: user in owners teams", f"conversation::{2 * turn}") + forbid("", f"conversation::{2 * turn + 1}")
        for turn in range(turns)
    )
    made = planned(rules + permit(""))
    assert isinstance(made, Conditional)
    depth = max(made.shape[:end].count("(") - made.shape[:end].count(")") for end in range(len(made.shape)))
    assert depth <= 20
    for row_id in range(2 * turns + 1):
        assert evaluate(made, Row("", frozenset(), str(row_id))) is (row_id % 2 == 0)
        assert evaluate(made, Row("", frozenset({"teams=a"}), str(row_id))) is (row_id % 2 == 0)


def test_few_turns_are_not_spread_out() -> None:
    """In a policy of ordinary length no condition is asked twice."""
    rules = "".join(forbid("", f"conversation::f{n}") + permit("", f"conversation::p{n}") for n in range(4))
    made = planned(rules)
    assert isinstance(made, Conditional)
    assert sum(map(len, made.values)) == 8


def test_principals_are_values() -> None:
    """Equal principals hash alike, and nobody can change one."""
    twin = Principal("", "ann", dict(ANN.attributes))
    assert twin == ANN
    assert hash(twin) == hash(ANN)
    assert len({ANN, BOB, Principal("t", "ann", ANN.attributes), Principal("", "ann")}) == 4
    with pytest.raises(TypeError):
        ANN.attributes["roles"] = frozenset({"admin"})  # type: ignore[index]
    attributes = {"roles": frozenset({"a"})}
    held = Principal("", "x", attributes)
    attributes["roles"] = frozenset({"admin"})
    assert held.attributes == {"roles": frozenset({"a"})}


def test_pairs() -> None:
    """A name and a value make one text; a name that begins another is not taken for it."""
    assert {"team=s=a", "teams=a"} == pairs({"team": ["s=a"], "teams": ["a", "a"], "roles": []})


def test_pairs_are_grouped() -> None:
    """Pairs give back the values of each name in their order; a value may contain `=`."""
    attributes = {"teams": ["b", "a"], "roles": ["x=y", ""]}
    assert attributes == group_pairs(attribute_pairs(attributes))
    assert {"teams": ["1", "2"], "roles": ["a"]} == group_pairs(["teams=1", "roles=a", "teams=2"])


def test_principals_are_told_apart() -> None:
    """Two are equal in all of tenant, id and attributes or not at all: what is kept for one must not serve another."""

    def made(tenant: str = "t", name: str = "n", **attributes: str) -> Principal:
        return Principal(tenant, name, {each: frozenset({value}) for each, value in attributes.items()})

    assert made(teams="a") == made(teams="a")
    assert hash(made(teams="a")) == hash(made(teams="a"))
    others = [made("u", teams="a"), made(name="m", teams="a"), made(teams="b"), made(roles="a"), made(), "n"]
    assert [] == [other for other in others if made(teams="a") == other]
