"""The form of a policy says what a document says, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster_controller.core.policy import Policy
from muster_controller.policy_document import dump, parse_policy
from muster_controller.policy_document.examples import examples
from muster_controller.policy_document.reading import paths
from muster_controller.web.policy_form import ROWS_MAX, document_of, fields_of, groups
from muster_controller.web.proposal import draft, from_document, marked

NAMES = sorted(
    {field.name for group in groups(Policy()) for row in ((group.fields,), group.rows) for f in row for field in f}
)


@pytest.mark.parametrize("name", sorted(examples()))
def test_every_example_goes_through_the_form_and_comes_out_the_same(name: str) -> None:
    policy = parse_policy(examples()[name])

    again = parse_policy(document_of(fields_of(policy)))

    assert again == policy


@pytest.mark.parametrize("text", ["{}", "ramp: {}", "trial: {}", "rate: {per_minute: 5}", "waves: [1, '5%']"])
def test_what_is_only_said_to_be_there_stays_there(text: str) -> None:
    policy = parse_policy(text)

    assert parse_policy(document_of(fields_of(policy))) == policy


def test_the_form_has_every_field_of_a_policy() -> None:
    offered = {name.replace(".0.", "[].").replace(".1.", "[].") for name in NAMES}

    structures = {"ramp", "rate", "weights", "trial", "abort_when", "approvals", "maintenance"}
    assert offered == set(paths()) - structures


def test_every_field_says_what_it_means() -> None:
    fields = [field for group in groups(Policy()) for field in (*group.fields, *(f for row in group.rows for f in row))]

    assert [field.name for field in fields if not field.hint and not field.name.startswith("trial.")] == []


def test_an_empty_form_is_the_default_policy() -> None:
    assert parse_policy(document_of({})) == Policy()
    assert draft({}).document == "{}\n"


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=30), max_size=8))
def test_whatever_is_filled_in_is_a_policy_or_is_refused_in_words(filled: dict[str, str]) -> None:
    found = draft(filled)

    if found.policy is None:
        assert found.problem is not None
        assert found.problem.message
    else:
        assert parse_policy(found.document) == found.policy


def test_a_refusal_names_the_line_of_the_document_that_is_shown() -> None:
    found = draft({"waves": "5, 25%", "soak_s": "soon"})

    assert found.problem is not None
    assert found.problem.line is not None
    assert "soon" in found.document.splitlines()[found.problem.line - 1]


def test_what_was_filled_in_stays_in_the_form_when_it_is_refused() -> None:
    found = draft({"soak_s": "soon"})

    values = {field.name: field.value for group in found.groups for field in group.fields}
    assert values["soak_s"] == "soon"


def test_a_document_that_was_changed_by_hand_goes_before_the_form_and_the_form_follows() -> None:
    shown = draft({"soak_s": "1h"})

    found = draft({"soak_s": "1h", "document": "soak_s: 2h  # longer\n", "shown": shown.mark})

    assert found.policy is not None
    assert found.policy.soak_s == 7200
    assert "# longer" in found.document
    assert {field.name: field.value for group in found.groups for field in group.fields}["soak_s"] == "2h"


def test_a_document_that_is_as_it_was_shown_leaves_the_word_to_the_form() -> None:
    shown = draft({"soak_s": "1h"})
    sent = shown.document.replace("\n", "\r\n")  # As browsers send what stands in a text area.

    found = draft({"soak_s": "3h", "document": sent, "shown": shown.mark})

    assert found.policy is not None
    assert found.policy.soak_s == 3 * 3600


def test_a_document_that_is_no_policy_sets_the_form_aside_until_it_is() -> None:
    broken = draft({"document": "soak_s: [", "shown": ""})

    after = draft({"soak_s": "1h", "document": broken.document, "shown": broken.mark})

    assert broken.is_by_hand
    assert after.document == "soak_s: ["
    assert after.problem is not None


def test_a_list_grows_by_a_line_and_is_bounded() -> None:
    policy = parse_policy(f"abort_when: [{', '.join(['{failures: 3}'] * 9)}]")

    rows = next(group for group in groups(policy) if group.name == "abort_when").rows

    assert len(rows) == ROWS_MAX


def test_the_mark_of_a_document_does_not_depend_on_how_lines_end() -> None:
    assert marked("a: 1\nb: 2\n") == marked("a: 1\r\nb: 2") != marked("a: 1\nb: 3\n")


def test_a_document_by_hand_keeps_its_comments() -> None:
    text = examples()["careful"]

    assert from_document(text).document == text
    assert from_document(dump(Policy())).groups == groups(Policy())
