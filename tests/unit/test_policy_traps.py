"""Traps that peers' policies fall into, each shown beside what ours does."""

import re

import pytest

from muster_controller.core.policy import PolicyInvalid
from muster_controller.policy_document import parse_policy


def hawkbit_is_in_error(expression: str, errors: int, total: int) -> bool:
    """hawkBit's rule for a rollout group: a percentage as text, evaluated when it is needed, long after it was written.

    What does not parse is logged and counts as "no error" (`ThresholdRolloutGroupErrorCondition`).
    """
    if total == 0:
        return False
    try:
        threshold = int(expression)
    except ValueError:
        return False
    return 100 * errors / total > threshold


@pytest.mark.parametrize("expression", ["5%", "five", "> 5", "5.5", ""])
def test_an_error_condition_that_does_not_parse_stops_nothing_in_hawkbit_and_is_refused_here(expression: str) -> None:
    document = f"waves: [5, '25%']\nabort_when:\n  - minimum: 10\n    failures: \"{expression} of all\"\n"

    assert hawkbit_is_in_error("5", errors=100, total=100)
    assert not hawkbit_is_in_error(f"{expression} of all", errors=100, total=100), "every device failed"
    with pytest.raises(PolicyInvalid, match=r"^rollout\.yaml:4: abort_when\[0\]\.failures is ") as caught:
        parse_policy(document, "rollout.yaml")

    assert caught.value.line == 4
    assert caught.value.field == "abort_when[0].failures"
    assert re.search(r'\n  4 \| failures: ".* of all"$', str(caught.value)), "it quotes the line"


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("failures: 3, reason: timeout", "could never abort"),
        ("failures: '0%'", "a share such as"),
        ("failures: 0", "at least one"),
        ("failures: 3, treshold: 5", "is no field of abort_when[0]"),
    ],
)
def test_an_error_condition_that_could_never_say_no_is_refused(condition: str, said: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(f"alpha: 1%\nabort_when: [{{{condition}}}]\n")

    assert said in str(caught.value)
    assert caught.value.line == 2
