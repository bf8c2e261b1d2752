"""A policy document is read without surprises, refused with its line, and described by the schema that is published."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from typer.testing import CliRunner

from muster_controller.cli.policies import app, examples
from muster_controller.core.policy import (
    CAUSES,
    Approval,
    Maintenance,
    Policy,
    PolicyInvalid,
    Ramp,
    Rate,
    Threshold,
    Weights,
    check,
)
from muster_controller.policy_document import dump, parse_policy, schema, written
from muster_controller.policy_document.nodes import BYTES_MAX
from muster_controller.policy_document.reading import paths
from muster_shared.assignment import Trial

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA = Draft202012Validator(schema())
DAY_S = 86400.0

percents = st.integers(1, 100).map(lambda share: f"{share}%")
counts_or_shares = st.one_of(st.integers(1, 10**6), percents)
shares = st.floats(0.001, 0.2)
names = st.text(min_size=1, max_size=12).filter(lambda name: name.strip() and name.isprintable())


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any policy that `check` accepts."""
    fixed = draw(st.booleans())
    approval = st.builds(
        Approval,
        before=st.one_of(st.just(1), st.just("finish"), st.just("every")),
        by=st.lists(names, min_size=2, max_size=3, unique=True).map(tuple),
        count=st.integers(1, 2),
    )
    return Policy(
        selector=draw(st.sampled_from(["", "site=berlin", "!a,b in (x,y),hw/class!=pi5"])),
        priority=draw(st.integers(0, 1000)),
        late_joiners=draw(st.sampled_from(["last_wave", "afterwards", "never"])),
        waves=tuple(draw(st.lists(counts_or_shares, min_size=1, max_size=4))) if fixed else (5, "25%"),
        ramp=None if fixed else draw(st.builds(Ramp, first=st.integers(1, 50), factor=st.floats(1, 9))),
        rate=draw(st.none() | st.builds(Rate, per_minute=st.floats(1, 60), every=st.integers(1, 999))),
        concurrency=draw(st.none() | counts_or_shares),
        soak_s=draw(st.floats(0, DAY_S) | st.integers(0, 99).map(lambda hours: hours * 3600.0)),
        success_required=draw(st.floats(0, 1)),
        abort_when=tuple(
            draw(
                st.lists(
                    st.builds(
                        Threshold,
                        failures=counts_or_shares,
                        minimum=st.integers(1, 99),
                        reason=st.none() | st.sampled_from(sorted(CAUSES)),
                    ),
                    max_size=3,
                )
            )
        ),
        on_abort=draw(st.sampled_from(["roll_back", "stop", "freeze"])),
        alpha=draw(shares),
        weights=draw(st.builds(Weights, failures=st.floats(0.1, 9), latency=st.floats(0, 9))),
        failure_objective=draw(shares),
        latency_tolerance=draw(shares),
        controls_per_device=draw(st.integers(0, 100)),
        download_s=draw(st.none() | st.floats(1, DAY_S)),
        deadline_s=7 * DAY_S,
        retries=draw(st.integers(0, 10)),
        approvals=tuple(draw(st.lists(approval, max_size=2))),
        maintenance=draw(st.sampled_from([(), (Maintenance(days="mon,wed-fri", start="01:00", end="24:00"),)])),
        consent=True,
        defer_s_max=draw(st.floats(7 * DAY_S, 90 * DAY_S)),
        trial=draw(st.builds(Trial, share=st.floats(0.01, 1), required=st.booleans())),
    )


def refused(raw: bytes | str, name: str = "policy") -> PolicyInvalid:
    with pytest.raises(PolicyInvalid) as caught:
        parse_policy(raw, name)
    return caught.value


# -- reading ---------------------------------------------------------------------------------------------------------


def test_an_empty_mapping_is_the_default_policy() -> None:
    assert parse_policy(b"{}") == Policy()


def test_what_is_not_written_has_its_default() -> None:
    found = parse_policy("version: 1\nwaves: [1, '50%']\nramp: null\nrate:\n  per_minute: 5\n")

    assert found == Policy(waves=(1, "50%"), rate=Rate(per_minute=5))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("soak_s: 90", 90),
        ("soak_s: 90s", 90),
        ("soak_s: 15m", 900),
        ("soak_s: '2h'", 7200),
        ("soak_s: 7d", 7 * DAY_S),
        ("soak_s: 1h30m", 5400),
        ("soak_s: 1.5h", 5400),
        ("soak_s: 2w", 14 * DAY_S),
    ],
)
def test_times_are_seconds_or_what_people_say(text: str, expected: float) -> None:
    assert parse_policy(text).soak_s == expected


@pytest.mark.parametrize(
    "text", ["soak_s: '90'", "soak_s: 1 h", "soak_s: h", "soak_s: -1h", "soak_s: 1y", "soak_s: 01:30"]
)
def test_a_time_that_could_mean_two_things_is_refused(text: str) -> None:
    assert '"90s"' in str(refused(text))


@pytest.mark.parametrize(("text", "expected"), [("0.9", 0.9), ("90%", 0.9), ("2.5%", 0.025), ("0%", 0), ("1", 1)])
def test_shares_are_numbers_or_percent(text: str, expected: float) -> None:
    assert parse_policy(f"success_required: {text}").success_required == expected


def test_words_and_times_of_yaml_1_1_are_text() -> None:
    found = parse_policy(
        "selector: {site: no, power: on, rack: 0x1f, built: 2024-01-01, slot: 1_000}\n"
        "maintenance: [{start: 01:00, end: 05:00}]\ndefer_s_max: 1d\n"
    )

    assert found.selector == "built=2024-01-01,power=on,rack=0x1f,site=no,slot=1_000"
    assert found.maintenance == (Maintenance(start="01:00", end="05:00"),)
    assert refused("consent: on").field == "consent"
    assert refused("retries: 0x3").field == "retries"
    assert refused("retries: 07").field == "retries"


def test_the_old_form_of_a_selector_is_still_read() -> None:
    assert parse_policy(b'{"selector": {"site": "berlin", "tier": "edge"}}').selector == "site=berlin,tier=edge"


def test_json_is_read_with_its_tabs_and_its_escapes() -> None:
    raw = '{\n\t"waves":[5,"25\\u0025"],\n\t"approvals":[{"before":1,"by":["\\ud83d\\ude00","a\\/b"]}]}'

    assert parse_policy(raw) == Policy(approvals=(Approval(before=1, by=("😀", "a/b")),))


# -- refusals --------------------------------------------------------------------------------------------------------


def test_the_refusal_has_file_line_field_the_line_itself_and_what_to_write() -> None:
    error = refused("waves: [5]\nrate:\n  per_minute: 10\n  factor: 0.5  # slower\n", "night.yaml")

    assert str(error) == "night.yaml:4: rate.factor is 0.5; it must be from 1 to 100\n  4 | factor: 0.5  # slower"
    assert (error.field, error.line) == ("rate.factor", 4)


@pytest.mark.parametrize(
    ("raw", "line", "said"),
    [
        ("", None, "empty; write {}"),
        ("# nothing\n", None, "empty"),
        ("[]", 1, "not a list"),
        ("waves", 1, "not the text 'waves'"),
        ("alpha: 0.1\nwavez: [5]", 2, "did you mean waves?"),
        ("factor: 3", 1, "did you mean ramp.factor or rate.factor?"),
        ("rate: {per_minute: 1, facter: 3}", 1, "did you mean factor?"),
        ("zzz: 1", 1, "it has selector, priority"),
        ("on_abort: rollback", 1, "did you mean roll_back?"),
        ("alpha: 0.1\n\nalpha: 0.2", 3, "'alpha' is given twice"),
        ("alpha: five", 1, "alpha is the text 'five'"),
        ("alpha: null", 1, "alpha is empty"),
        ("alpha: .nan", 1, "alpha is the text '.nan'"),
        ("alpha: 1e999", 1, "alpha is inf"),
        ("alpha: true", 1, "alpha is true"),
        ("retries: 2.5", 1, "write a whole number"),
        ("retries: true", 1, "write a whole number"),
        ("retries: 99999999999999999999", 1, "write a whole number"),
        ("retries: " + "9" * 5000, 1, "write a whole number"),
        ("waves: 5", 1, "write a list"),
        ("waves:\n- 5\n- 2.5", 3, "waves[1] is 2.5"),
        ("waves:\n- 5\n- 25 %", 3, 'a share such as "25%"'),
        ("waves: [5]\nramp: {}", 2, "write one of them"),
        ("waves: [5, '25%']\nramp: {}", 2, "write one of them"),
        ("ramp: 5", 1, "write a mapping of first, factor"),
        ("rate: {factor: 2}", 1, "lacks per_minute"),
        ("trial: {shar: 1}", 1, "did you mean share?"),
        ("selector: [a]", 1, "selector is a list"),
        ("selector: a in (x", 1, "expected a comma or )"),
        ("selector:\n  ok: a\n  -: b", 3, "expected a key"),
        ("selector: {site: }", 1, "write the label's value"),
        ("approvals:\n- before: finish\n  by: anna", 3, "write a list"),
        ("consent: true", 1, "say how long"),
        ("window_max_s: 2h", 1, "deadline_s (3600) must be longer"),
        ("version: 2", 1, "reads version 1"),
        ("a: &x 1\nb: *x", 1, "anchor"),
        ("<<: {alpha: 0.1}", 1, "'<<' is no field"),
        ("alpha: !!float 0.1", 1, "a tag"),
        ("!!python/object/apply:os.system [ls]", 1, "a tag"),
        ("{}\n---\n{}", 2, "a second document"),
        ("? [a]\n: b", 1, "not a word"),
        ("waves: [5\nalpha: 1", 2, "not YAML"),
        ("alpha: 0.1\n\tsoak_s: 1", 2, "not YAML"),
        ("selector: a\x00b", 1, "does not allow"),
        (b"alpha: 0.1\nselector: \xff", 2, "not UTF-8"),
        ('selector: "\\ud800"', 1, "half of an escaped character"),
        ('selector: "\\UFFFFFFFF"', None, "not YAML"),
        ("[" * 100, 1, "deeper than 16"),
        ("waves: [" + "1," * 5000 + "]", 1, "more than 4000 values"),
        ("#" * (BYTES_MAX + 1), None, "the limit is 65536"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(raw: bytes | str, line: int | None, said: str) -> None:
    error = refused(raw, "p.yaml")

    assert said in str(error)
    assert error.line == line
    assert str(error).startswith("p.yaml: " if line is None else f"p.yaml:{line}: ")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(raw: bytes) -> None:
    only_refused(raw)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("abw:-{}[],'\"&*!|>%?#@` \n\t\r\\0159é\x85\u2028\ufeff\ud800", max_size=80))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    only_refused(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | percents,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*paths(), "version"]), inner),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([path for path in paths() if "." not in path]), json_values, max_size=3))
def test_no_values_do_more_than_be_refused(document: dict[str, Any]) -> None:
    only_refused(json.dumps(document))
    only_refused(yaml.safe_dump(document))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(examples())), st.integers(0, 3000), st.integers(0, 5), st.text(max_size=4))
def test_no_damage_to_an_example_does_more_than_be_refused(name: str, at: int, lost: int, typed: str) -> None:
    text = examples()[name]

    only_refused(text[:at] + typed + text[at + lost :])


def only_refused(raw: bytes | str) -> None:
    try:
        policy = parse_policy(raw)
    except PolicyInvalid:
        return
    check(policy)


# -- writing ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies())
def test_what_is_written_reads_back_as_the_same_policy(policy: Policy) -> None:
    check(policy)

    assert parse_policy(dump(policy)) == policy
    assert parse_policy(msgspec.json.encode(written(policy))) == policy


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies())
def test_a_whole_policy_as_json_reads_back_too(policy: Policy) -> None:
    whole = msgspec.structs.replace(policy, ramp=None)

    assert parse_policy(msgspec.json.encode(whole)) == whole


def test_only_what_differs_from_the_default_is_written() -> None:
    policy = Policy(
        soak_s=5400,
        retries=2,
        rate=Rate(per_minute=5),
        maintenance=(Maintenance(start="01:00", end="05:00"),),
        defer_s_max=DAY_S,
        approvals=(Approval(before="every", by=("1e5", "no")),),
    )

    assert dump(Policy()) == "{}\n"
    assert dump(policy) == (
        "rate: {per_minute: 5}\n"
        "soak_s: 90m\n"
        "retries: 2\n"
        "approvals:\n"
        "- before: every\n"
        "  by: ['1e5', 'no']\n"
        "maintenance:\n"
        "- {start: '01:00', end: '05:00'}\n"
        "defer_s_max: 1d\n"
    )


# -- the schema ------------------------------------------------------------------------------------------------------


def test_the_committed_schema_is_that_of_the_code() -> None:
    committed = (DOCS / "protocol" / "policy.schema.json").read_text()

    run = "run: python -m muster_controller.policy_document > docs/protocol/policy.schema.json"
    assert committed == json.dumps(schema(), indent=2) + "\n", run


def test_the_schema_is_a_schema_and_explains_every_field() -> None:
    found = schema()

    Draft202012Validator.check_schema(found)
    for component in (found, *found["$defs"].values()):
        assert component["description"]
        assert component["additionalProperties"] is False
        for name, field in component["properties"].items():
            assert field["description"].endswith("."), name


@pytest.mark.parametrize("name", sorted(examples()))
def test_parser_and_schema_accept_every_example(name: str) -> None:
    text = examples()[name]

    parse_policy(text, name)
    SCHEMA.validate(yaml.safe_load(text))


def test_the_example_of_everything_leaves_no_field_out() -> None:
    document = yaml.safe_load(examples()["everything"])

    assert {path for path in paths() if "." not in path} - set(document) == {"ramp"}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies())
def test_the_schema_accepts_what_the_parser_accepts(policy: Policy) -> None:
    SCHEMA.validate(written(policy))
    SCHEMA.validate(yaml.safe_load(dump(policy)))


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"wavez": [5]},
        {"waves": []},
        {"waves": [0]},
        {"waves": ["101%"]},
        {"waves": [5], "ramp": {}},
        {"alpha": "five"},
        {"alpha": 0.9},
        {"alpha": True},
        {"soak_s": "90"},
        {"retries": 11},
        {"on_abort": "rollback"},
        {"rate": {"factor": 2}},
        {"rate": {"per_minute": 1, "facter": 2}},
        {"trial": {"shar": 1}},
        {"abort_when": [{"failures": 0}]},
        {"abort_when": [{"failures": 1, "reason": "error > 5"}]},
        {"approvals": [{"before": "start"}]},
        {"approvals": [{"before": 1, "by": ["anna", "anna"]}]},
        {"maintenance": [{"start": "1:00", "end": "05:00"}], "defer_s_max": "1d"},
        {"maintenance": [{"days": "weekend", "start": "01:00", "end": "05:00"}], "defer_s_max": "1w"},
        {"version": 2},
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(document: Any) -> None:
    refused(json.dumps(document))

    with pytest.raises(ValidationError):
        SCHEMA.validate(document)


def test_the_guide_speaks_of_every_field() -> None:
    guide = (DOCS / "policies.md").read_text()

    assert [path for path in paths() if f"`{path}`" not in guide] == []


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command_refuses_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("waves: [5]\nsoak: 2h\n")

    plain = CliRunner().invoke(app, ["check", str(file)])
    for_programs = CliRunner().invoke(app, ["check", str(file), "--json"])

    assert plain.exit_code == for_programs.exit_code == 1
    assert "bad.yaml:2: 'soak' is no field of a policy; did you mean soak_s?" in plain.output
    found = json.loads(for_programs.stdout)
    assert (found["valid"], found["field"], found["line"]) == (False, "soak", 2)


@pytest.mark.parametrize("name", sorted(examples()))
def test_an_example_that_is_printed_and_saved_is_valid(name: str, tmp_path: Path) -> None:
    printed = CliRunner().invoke(app, ["example", name])
    (tmp_path / "mine.yaml").write_text(printed.stdout)
    checked = CliRunner().invoke(app, ["check", str(tmp_path / "mine.yaml"), "--json"])

    assert checked.exit_code == 0
    assert json.loads(checked.stdout)["written"] == written(parse_policy(examples()[name]))


def test_the_command_names_examples_and_refuses_others(tmp_path: Path) -> None:
    listed = CliRunner().invoke(app, ["example", "list"])
    unknown = CliRunner().invoke(app, ["example", "../careful"])
    absent = CliRunner().invoke(app, ["check", str(tmp_path / "none.yaml")])

    assert listed.stdout.split() == ["careful", "everything", "night-shift", "ramp"]
    assert unknown.exit_code == absent.exit_code == 1


def test_the_command_prints_the_schema() -> None:
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout) == schema()
