"""What is shipped is what is locked: closures, their CycloneDX documents, and what an audit fails on. No network."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import audit
import closure
import pytest
import sbom
import wheels

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 3, 1)
FOUND = audit.Vulnerability("example", "1.0", "PYSEC-2026-1", ("CVE-2026-1",), ("1.1",))


@pytest.fixture(scope="module")
def parts() -> dict[str, closure.Part]:
    return closure.parts_of(ROOT)


@pytest.fixture(scope="module")
def pins() -> dict[str, closure.Pin]:
    return closure.read_lock(ROOT / "requirements.lock")


# -- closures and documents --------------------------------------------------------------------------------------------


def test_every_locked_package_has_hashes(pins: dict[str, closure.Pin]) -> None:
    assert len(pins) > 50
    assert [name for name, pin in pins.items() if not pin.sha256] == []


@pytest.mark.parametrize("name", ["muster-shared", "muster-agent", "muster-controller", "muster-simulator"])
def test_each_of_our_wheels_has_a_document_of_all_that_it_brings_along(
    name: str, parts: dict[str, closure.Part], pins: dict[str, closure.Pin]
) -> None:
    packages = closure.close(parts[name], parts, pins)

    text = sbom.document(parts[name], packages, None)

    document: dict[str, Any] = json.loads(text)
    components = {each["name"]: each for each in document["components"]}
    assert document["specVersion"] == "1.6"
    assert document["metadata"]["component"]["name"] == name
    assert set(components) == set(packages) - {name}
    for foreign in set(components) - set(parts):
        assert components[foreign]["version"] == pins[foreign].version
        (reference,) = components[foreign]["externalReferences"]
        assert tuple(sorted(each["content"] for each in reference["hashes"])) == pins[foreign].sha256
    assert text == sbom.document(parts[name], closure.close(parts[name], parts, pins), None)


def test_a_document_is_what_the_schema_says(parts: dict[str, closure.Part], pins: dict[str, closure.Pin]) -> None:
    part = parts["muster-shared"]
    text = sbom.document(part, closure.close(part, parts, pins), None)

    sbom.check(text)
    with pytest.raises(ValueError, match="not CycloneDX"):
        sbom.check(text.replace('"library"', '"librarian"'))


def test_a_document_tells_what_is_needed_from_what_an_extra_asks_for(
    parts: dict[str, closure.Part], pins: dict[str, closure.Pin]
) -> None:
    packages = closure.close(parts["muster-agent"], parts, pins)

    assert not packages["msgspec"].is_optional
    assert not packages["cffi"].is_optional
    assert packages["onnxruntime"].is_optional
    assert packages["muster-agent"].needs >= {"muster-shared", "numpy", "onnxruntime"}


def test_a_device_brings_no_framework_of_the_controller_along(
    parts: dict[str, closure.Part], pins: dict[str, closure.Pin]
) -> None:
    packages = closure.close(parts["muster-agent"], parts, pins)

    assert {"fastapi", "sqlalchemy", "uvicorn", "jinja2"}.isdisjoint(packages)


def test_what_the_lock_lacks_is_said(parts: dict[str, closure.Part], pins: dict[str, closure.Pin]) -> None:
    without = {name: pin for name, pin in pins.items() if name != "msgspec"}

    with pytest.raises(closure.LockIncomplete, match="msgspec"):
        closure.close(parts["muster-shared"], parts, without)


def test_what_is_installed_otherwise_than_locked_is_said(
    parts: dict[str, closure.Part], pins: dict[str, closure.Pin]
) -> None:
    other = {**pins, "msgspec": closure.Pin("0.0.1", ())}

    with pytest.raises(closure.LockIncomplete, match=r"the lock says 0\.0\.1"):
        closure.close(parts["muster-shared"], parts, other)


# -- audits ------------------------------------------------------------------------------------------------------------


def test_a_finding_fails_and_says_the_cure() -> None:
    (said,) = audit.judge(audit.Answer(1, (), (FOUND,)), (), TODAY)

    assert "PYSEC-2026-1" in said
    assert "1.1" in said


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-1"])
def test_a_finding_that_is_explained_passes_until_its_date(name: str) -> None:
    ignored = (audit.Ignored(name, "example", "not reached", date(2026, 3, 1)),)
    answer = audit.Answer(1, (), (FOUND,))

    assert audit.judge(answer, ignored, TODAY) == []
    assert len(audit.judge(answer, ignored, date(2026, 3, 2))) == 1


def test_an_explanation_for_another_package_explains_nothing() -> None:
    ignored = (audit.Ignored("PYSEC-2026-1", "other", "not reached", date(2027, 1, 1)),)

    assert len(audit.judge(audit.Answer(1, (), (FOUND,)), ignored, TODAY)) == 1


@pytest.mark.parametrize("lack", ["id", "package", "reason", "until"])
def test_an_explanation_lacks_nothing(lack: str) -> None:
    entry = {"id": '"A"', "package": '"b"', "reason": '"c"', "until": "2026-12-31"}
    lines = [f"{key} = {value}" for key, value in entry.items()]

    assert len(audit.parse_ignored("\n".join(["[[ignored]]", *lines]))) == 1
    with pytest.raises(ValueError, match="needs id"):
        audit.parse_ignored("\n".join(["[[ignored]]", *(line for line in lines if not line.startswith(lack))]))


def test_the_list_of_explanations_reads() -> None:
    audit.parse_ignored(audit.IGNORED.read_text(encoding="utf-8"))


def test_what_the_service_does_not_know_is_not_audited() -> None:
    raw = {
        "dependencies": [
            {"name": "a", "skip_reason": "not found"},
            {"name": "b", "version": "1", "vulns": [{"id": "X", "aliases": [], "fix_versions": []}]},
        ]
    }

    answer = audit.parse_answer(json.dumps(raw))

    assert (answer.audited, answer.skipped) == (1, ("a",))
    assert answer.vulnerabilities == (audit.Vulnerability("b", "1", "X", (), ()),)


# -- wheels ------------------------------------------------------------------------------------------------------------


def test_every_extra_is_resolved_on_every_kind_of_device(parts: dict[str, closure.Part]) -> None:
    resolved = {
        (case.part.name, extra, case.platform.partition("-")[0], case.python)
        for case in wheels.cases(parts)
        for extra in case.extras
    }

    agent = parts["muster-agent"]
    for extra in agent.extras:
        for architecture in ("x86_64", "aarch64"):
            for python in ("3.11", "3.12", "3.13"):
                assert ("muster-agent", extra, architecture, python) in resolved


def test_a_case_asks_for_what_others_make(parts: dict[str, closure.Part]) -> None:
    for case in wheels.cases(parts):
        wanted = wheels.requirements(case, parts)

        assert any(line.startswith("tuf") for line in wanted)
        assert not any(line.startswith("muster") for line in wanted)
