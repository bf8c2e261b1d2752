"""Selectors are Kubernetes' own: its grammar, its semantics, and a caret where something is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muster_controller.core.selector import (
    Operator,
    Requirement,
    Selector,
    SelectorInvalid,
    contradiction,
    device_labels,
    equals,
    label_safe,
    parse,
)
from muster_shared.messages import Hardware

names = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?", fullmatch=True)
prefixes = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?(\.[a-z0-9]{1,5}){0,2}", fullmatch=True)
keys = st.one_of(names, st.builds(lambda prefix, name: f"{prefix}/{name}", prefixes, names))
values = st.one_of(st.just(""), names)
some_values = st.frozensets(values, min_size=1, max_size=4)
requirements = st.one_of(
    st.builds(Requirement, keys, st.sampled_from([Operator.IN, Operator.NOT_IN]), some_values),
    st.builds(Requirement, keys, st.sampled_from([Operator.EXISTS, Operator.MISSING])),
)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [  # What k8s.io/apimachinery's own tests of `labels.Parse` state, and its documentation.
        ("", {"x": "y"}, True),
        ("x=y", {"x": "y"}, True),
        ("x=y,z=w", {"x": "y", "z": "w"}, True),
        ("x!=y,z!=w", {"x": "z", "z": "a"}, True),
        ("notin=in", {"notin": "in"}, True),
        ("x", {"x": "z"}, True),
        ("!x", {"y": "z"}, True),
        ("x=", {"x": ""}, True),
        ("x= ", {"x": ""}, True),
        ("x=,z= ", {"x": "", "z": ""}, True),
        ("x= ,z= ", {"x": "", "z": ""}, True),
        ("x=z", {}, False),
        ("x=y", {"x": "z"}, False),
        ("x=y,z=w", {"x": "w", "z": "w"}, False),
        ("x!=y,z!=w", {"x": "z", "z": "w"}, False),
        ("x", {"y": "z"}, False),
        ("!x", {"x": "z"}, False),
        ("x!=y", {}, True),
        ("x notin (y)", {}, True),
        ("x notin (y)", {"x": "y"}, False),
        ("x in ()", {}, None),
        ("x in (abc,def)", {"x": "def"}, True),
        ("x in (abc,def)", {"x": "xyz"}, False),
        ("x in (,abc)", {"x": ""}, True),
        ("x in (abc,)", {"x": ""}, True),
        ("x in (a,,b)", {"x": ""}, True),
        ("x==a", {"x": "a"}, True),
        ("  x  ==  a  ,  y  ", {"x": "a", "y": ""}, True),
        ("in in (in)", {"in": "in"}, True),
        ("x in(a)", {"x": "a"}, True),
        ("x,!y,z in (a,b),w notin (c)", {"x": "", "z": "b"}, True),
        ("example.com/tier=gold", {"example.com/tier": "gold"}, True),
        ("X=y", {"x": "y"}, False),
        ("x=a||y=b", {}, None),
        ("x==a==b", {}, None),
        ("!x=a", {}, None),
        ("!!x", {}, None),
        ("x<1", {}, None),
        ("x=a,", {}, None),
        (",x", {}, None),
        ("x,,y", {}, None),
        ("x=a b", {}, None),
        ("x in a", {}, None),
        ("x in (a", {}, None),
        ("x in (a b)", {}, None),
        ("x In (a)", {}, None),
        ("(x)", {}, None),
        ("-x", {}, None),
        ("x-=a", {}, None),
        ("x=-a", {}, None),
        ("/x", {}, None),
        ("Example.com/x", {}, None),
        ("a..b/x", {}, None),
        ("a/b/c", {}, None),
        ("x" * 63, {"x" * 63: ""}, True),
        ("x" * 64, {}, None),
        ("x=" + "y" * 64, {}, None),
        ("p" * 254 + "/x", {}, None),
        ("x=é", {}, None),
    ],
)
def test_a_selector_means_what_kubernetes_says(text: str, labels: dict[str, str], expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(SelectorInvalid):
            parse(text)
        return

    assert parse(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("b,a", "a,b"),
        ("a==x", "a=x"),
        ("a in (x)", "a=x"),
        ("a notin (x)", "a!=x"),
        ("a in (y, x,x)", "a in (x,y)"),
        ("a , a", "a"),
        ("a in (,x)", "a in (,x)"),
        ("a in (,)", "a="),
    ],
)
def test_selectors_that_mean_the_same_read_the_same(text: str, canonical: str) -> None:
    assert str(parse(text)) == canonical


@settings(deadline=None)
@given(st.lists(requirements, max_size=5))
def test_what_is_written_reads_back_as_it_was(wanted: list[Requirement]) -> None:
    selector = Selector(tuple(sorted(set(wanted), key=str)))

    assert parse(str(selector)) == selector
    assert selector.keys == {requirement.key for requirement in wanted}


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.text("ab=!(), <>in-/.\t", max_size=40)))
def test_no_text_does_more_than_be_refused(text: str) -> None:
    try:
        selector, position = parse(text), 0
    except SelectorInvalid as error:
        selector, position = Selector(), error.position

    assert 0 <= position <= len(text)
    assert parse(str(selector)) == selector


@settings(deadline=None)
@given(st.lists(requirements, max_size=4), st.dictionaries(keys, values, max_size=4))
def test_a_contradiction_matches_no_device(wanted: list[Requirement], labels: dict[str, str]) -> None:
    selector = Selector(tuple(wanted))

    if contradiction(selector):
        assert not selector.matches(labels)


@pytest.mark.parametrize(
    "text", ["a=x,a=y", "a,!a", "a=x,!a", "a=x,a!=x", "a in (x,y),a notin (x,y)", "a in (x,y),a=z"]
)
def test_conditions_that_exclude_each_other_are_told(text: str) -> None:
    assert contradiction(parse(text)) is not None


@pytest.mark.parametrize("text", ["", "a", "a=x,a in (x,y)", "a!=x,!a", "a notin (x),a notin (y)", "!a,b"])
def test_conditions_that_can_hold_together_are_none(text: str) -> None:
    assert contradiction(parse(text)) is None


def test_the_caret_stands_under_what_is_wrong() -> None:
    with pytest.raises(SelectorInvalid) as caught:
        parse("site in (berlin oslo)")

    said, excerpt, caret = str(caught.value).split("\n")
    assert said == "found 'oslo' at position 17; expected a comma or )"
    assert excerpt[caret.index("^") :] == "oslo)"
    assert caught.value.position == 16


def test_in_a_long_selector_only_the_place_is_shown() -> None:
    with pytest.raises(SelectorInvalid) as caught:
        parse(",".join(f"key{n}=value" for n in range(100)) + ",-,b" + ",c" * 60)

    _, excerpt, caret = str(caught.value).split("\n")
    assert len(excerpt) < 130
    assert excerpt[caret.index("^")] == "-"


def test_a_selector_without_end_is_refused() -> None:
    with pytest.raises(SelectorInvalid, match="5000 characters"):
        parse("a" * 5000)


def test_plain_labels_become_a_selector_of_equalities() -> None:
    assert equals({"tier": "edge", "site": "berlin"}) == "site=berlin,tier=edge"


# -- what a selector sees --------------------------------------------------------------------------------------------

HARDWARE = Hardware(
    device_class="pi5-cpu",
    arch="aarch64",
    accelerators=("cpu", "hailo 8"),
    cpu_count=4,
    memory_mb=8063,
    runtimes=("onnxruntime",),
)


def test_a_device_is_seen_with_its_labels_and_its_hardware() -> None:
    found = device_labels({"site": "berlin"}, HARDWARE, "1.4.0+build")

    assert found == {
        "site": "berlin",
        "agent/version": "1.4.0-build",
        "hw/class": "pi5-cpu",
        "hw/arch": "aarch64",
        "hw/cpus": "4",
        "hw/memory-mb": "8063",
        "hw/runtime.onnxruntime": "true",
        "hw/accelerator.cpu": "true",
        "hw/accelerator.hailo-8": "true",
    }


def test_no_device_can_claim_hardware_by_a_label() -> None:
    claimed = {"hw/accelerator.gpu": "true", "hw/class": "dgx", "agent/version": "99", "hardware": "mine"}

    found = device_labels(claimed, HARDWARE, None)

    assert "hw/accelerator.gpu" not in found
    assert "agent/version" not in found
    assert found["hw/class"] == "pi5-cpu"
    assert found["hardware"] == "mine"
    assert device_labels(claimed, None, None) == {"hardware": "mine"}


def test_unknown_memory_is_missing_and_not_zero() -> None:
    assert "hw/memory-mb" not in device_labels({}, Hardware(device_class="x", arch="y"), None)


@settings(deadline=None)
@given(st.text(max_size=100), st.lists(st.text(max_size=80), max_size=3))
def test_whatever_a_device_reports_can_be_selected(text: str, reported: list[str]) -> None:
    hardware = Hardware(device_class=text, arch=text, accelerators=tuple(reported), runtimes=tuple(reported))

    found = device_labels({}, hardware, text)

    assert parse(equals(found)).matches(found)


@settings(deadline=None)
@given(st.text(max_size=100))
def test_a_safe_label_stays_as_it_is(text: str) -> None:
    assert label_safe(label_safe(text)) == label_safe(text)
