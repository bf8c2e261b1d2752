"""Every parser of what comes from outside, on a few hundred nearly valid inputs, and on all that it once failed on.

The same inputs at each run; `make fuzz` looks for new ones. What a target asserts is said where it is defined.
"""

from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.every import NAMES, target
from fuzz.mutation import mutate
from fuzz.target import Target, execute

EXAMPLES = 200
SLOW = {"trust-forged": 40, "trust-signed": 40, "trust-state": 60, "policy": 80}
REGRESSIONS = Path(__file__).parent / "regressions"
KEPT = sorted(path for path in REGRESSIONS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_a_valid_input_costs_little_and_breaks_nothing(name: str) -> None:
    each = target(name)

    findings = [execute(each, seed) for seed in each.seeds()]

    assert findings == [None] * len(findings)


@pytest.mark.parametrize("name", NAMES)
def test_a_nearly_valid_input_is_understood_or_refused_in_words_of_ours(name: str) -> None:
    each = target(name)
    seeds = list(each.seeds())

    @settings(
        max_examples=SLOW.get(name, EXAMPLES),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, (1 << 64) - 1))
    def try_one(number: int) -> None:
        random = Random(number)
        data = mutate(random.choice(seeds), seeds, each.words, each.bytes_max, random)
        found = execute(each, data)
        assert found is None, f"{found}\n{data[:2000]!r}"

    try_one()


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_was_found_once_is_not_found_again(path: Path) -> None:
    found = execute(target(path.parent.name), path.read_bytes())

    assert found is None, found


def test_every_kept_input_belongs_to_a_target() -> None:
    assert {path.parent.name for path in KEPT} <= set(NAMES)


# -- the oracle itself -------------------------------------------------------------------------------------------------


def _parse(data: bytes) -> None:
    match data:
        case b"refused":
            raise ValueError("no")
        case b"wordy":
            raise ValueError("no" * 5000)
        case b"bug":
            raise KeyError("who?")
        case b"slow":
            sum(range(2_000_000))
        case _:
            assert data == b"fine"


ORACLE = Target("oracle", _parse, lambda: (b"fine",), (ValueError,), seconds_max=0.001)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"wordy", "words ValueError test_parsers.py:_parse"),
        (b"bug", "KeyError test_parsers.py:_parse"),
        (b"slow", "seconds"),
        (b"else", "AssertionError test_parsers.py:_parse"),
    ],
)
def test_the_oracle_sees_an_error_a_wait_and_a_flood_of_words(data: bytes, kind: str) -> None:
    found = execute(ORACLE, data)

    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize("data", [b"fine", b"refused"])
def test_the_oracle_lets_pass_what_is_right_and_what_is_refused_as_documented(data: bytes) -> None:
    found = execute(Target("oracle", _parse, lambda: (), (ValueError,)), data)

    assert found is None


def test_mutations_are_the_same_again_and_never_too_long() -> None:
    seeds = [b'{"a": {"b": [1, 2, "eyJ4IjogMX0="]}}', b"a/b/c"]

    made = [mutate(seeds[step % 2], seeds, (b"/",), 5000, Random(step)) for step in range(500)]

    assert made == [mutate(seeds[step % 2], seeds, (b"/",), 5000, Random(step)) for step in range(500)]
    assert max(map(len, made)) <= 5000
    assert len(set(made)) > 300
