"""Who may order what: the table of roles, scopes, and what a smaller principal is made of."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.core.selector import parse
from muster_controller.operators.roles import (
    GRANTS,
    Permission,
    Principal,
    Role,
    fits,
    inside,
    least_role,
    lesser,
    may,
    narrowed,
)

P = Permission
TABLE = {
    Role.VIEWER: {P.VIEW, P.ACCOUNT},
    Role.OPERATOR: {P.VIEW, P.ACCOUNT, P.OPERATE},
    Role.PUBLISHER: {P.VIEW, P.ACCOUNT, P.OPERATE, P.PUBLISH},
    Role.APPROVER: {P.VIEW, P.ACCOUNT, P.OPERATE, P.APPROVE},
    Role.ADMIN: {P.VIEW, P.ACCOUNT, P.OPERATE, P.PUBLISH, P.APPROVE, P.ADMINISTER},
}
SELECTORS = (
    "a=x", "a=y", "a!=x", "a", "!a", "a in (x,y)", "a notin (x,y)", "b=x", "b!=y", "a=x,b=y", "a in (x,y),!b", "",
)  # fmt: skip
LABELS = [
    {key: value for key, value in (("a", a), ("b", b)) if value is not None}
    for a in (None, "x", "y", "z")
    for b in (None, "x", "y", "z")
]


@pytest.mark.parametrize("permission", list(Permission))
@pytest.mark.parametrize("role", list(Role))
def test_each_role_may_what_the_table_says_and_nothing_else(role: Role, permission: Permission) -> None:
    allowed = may(Principal("anna", role), permission)

    assert allowed is (permission in TABLE[role])


def test_a_selector_shows_the_devices_that_fit_it_alone() -> None:
    berlin = Principal("anna", Role.OPERATOR, "site=berlin")

    assert may(berlin, P.OPERATE, {"site": "berlin"})
    assert not may(berlin, P.OPERATE, {"site": "oslo"})
    assert not may(berlin, P.VIEW, {})
    assert not may(berlin, P.PUBLISH, {"site": "berlin"})
    assert may(Principal("ben", Role.VIEWER), P.VIEW, {"site": "oslo"})


@pytest.mark.parametrize("one", list(Role))
@pytest.mark.parametrize("other", list(Role))
def test_a_token_may_what_it_and_its_operator_may(one: Role, other: Role) -> None:
    assert GRANTS[lesser(one, other)] == GRANTS[one] & GRANTS[other]


@given(st.sampled_from(SELECTORS), st.sampled_from(SELECTORS))
def test_what_is_inside_selects_no_device_outside(selector: str, scope: str) -> None:
    is_inside = inside(selector, scope)

    strays = [each for each in LABELS if parse(selector).matches(each) and not parse(scope).matches(each)]
    assert not (is_inside and strays)


@given(st.sampled_from(SELECTORS), st.sampled_from(SELECTORS))
def test_what_is_narrowed_is_inside_both_and_loses_nothing(selector: str, scope: str) -> None:
    both = narrowed(selector, scope)

    assert inside(both, scope)
    assert inside(both, selector)
    for labels in LABELS:
        expected = parse(selector).matches(labels) and parse(scope).matches(labels)
        assert parse(both).matches(labels) is expected


@pytest.mark.parametrize(
    ("selector", "scope", "expected"),
    [
        ("site=berlin,tier=edge", "site=berlin", True),
        ("site=berlin", "site in (berlin,oslo)", True),
        ("site=berlin", "site!=oslo", True),
        ("site=berlin", "site", True),
        ("!site", "site!=oslo", True),
        ("", "site=berlin", False),
        ("tier=edge", "site=berlin", False),
        ("site in (berlin,oslo)", "site=berlin", False),
        ("site!=oslo", "site=berlin", False),
        ("site", "site=berlin", False),
        ("anything=at-all", "", True),
    ],
)
def test_inside_is_proven_condition_by_condition(selector: str, scope: str, expected: bool) -> None:
    assert inside(selector, scope) is expected


def test_the_local_token_sees_everything() -> None:
    assert fits(Principal("local:root", Role.ADMIN), {})
    assert least_role(P.ADMINISTER) == "admin"
    assert least_role(P.PUBLISH) == "publisher or admin"
