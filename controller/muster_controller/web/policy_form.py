"""The form of a policy: from what a person filled in to the document, and from a document to what the form shows. Pure.

A field's name is its path in the document (`ramp.first`, `approvals.0.before`), so that the form can only say what a
document can. What a field means is told by the texts beside `core.policy`'s fields; whether it can be says
`parse_policy`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import msgspec
import yaml

from muster_controller.core.policy import CAUSES, Policy, Ramp, Rate
from muster_controller.policy_document import dump, units
from muster_controller.policy_document.schema import descriptions
from muster_shared.assignment import Trial

ROWS_MIN = 2  # Of lists: so many lines are shown, ...
ROWS_MAX = 10  # ... and never more; who needs more writes the document.
VALUE_MAX = 400
DOCUMENT_MAX = 16_000
"""Characters: it travels in an address."""

Built = dict[str, object]
Kind = Literal["text", "choice", "flag"]


@dataclass(frozen=True)
class Field:
    """One input. `usual` is what counts when it is left empty."""

    name: str
    label: str
    hint: str
    kind: Kind = "text"
    choices: tuple[str, ...] = ()
    usual: str = ""
    value: str = ""


@dataclass(frozen=True)
class Group:
    """Inputs that belong together; those of a group that is not `is_usual` are folded away."""

    name: str
    title: str
    fields: tuple[Field, ...]
    is_usual: bool
    rows: tuple[tuple[Field, ...], ...] = ()
    """Of a list, a line each."""
    is_used: bool = False


_LABELS = {
    "selector": "Which devices",
    "waves": "Waves",
    "soak_s": "Soak after each wave",
    "on_abort": "When it aborts",
    "success_required": "Of a wave must succeed",
    "alpha": "Chance of a false abort",
    "window_s": "Measured after the switch",
    "deadline_s": "Silence counts as bad after",
}
_GROUPS: tuple[tuple[str, str, bool, tuple[str, ...]], ...] = (
    ("who", "Who and how fast", True, ("selector", "waves", "soak_s")),
    ("stops", "What stops it", True, ("success_required", "alpha", "on_abort")),
    ("device", "What a device does", True, ("window_s", "deadline_s")),
    ("ramp", "A ramp in place of waves", False, ("ramp.first", "ramp.factor", "ramp.harm_max", "ramp.waves_max")),
    (
        "pace",
        "Pace, priority, latecomers",
        False,
        (
            *("rate.per_minute", "rate.factor", "rate.every", "rate.per_minute_max"),
            *("concurrency", "priority", "late_joiners"),
        ),
    ),
    ("abort_when", "Error conditions", False, ("failures", "minimum", "reason")),
    (
        "gate",
        "Numbers of the gate",
        False,
        (
            *("failure_objective", "tolerance", "latency_tolerance", "disagreement_objective", "controls_per_device"),
            *("weights.failures", "weights.latency", "weights.agreement", "metrics_required"),
        ),
    ),
    ("approvals", "Approvals", False, ("before", "count", "by")),
    ("maintenance", "Maintenance windows", False, ("days", "start", "end")),
    ("consent", "Consent and deferral", False, ("consent", "defer_s_max")),
    (
        "window",
        "Window, download, retries",
        False,
        ("window_max_s", "requests_min", "download_s", "retries", "retry_wait_s"),
    ),
    (
        "trial",
        "Trial beside what serves",
        False,
        (
            *("trial.mode", "trial.share", "trial.requests_min", "trial.seconds_max"),
            *("trial.required", "trial.disagreement_max", "trial.latency_ratio_max"),
        ),
    ),
)
_LISTS = {"abort_when": "Threshold", "approvals": "Approval", "maintenance": "Maintenance"}
_STRUCTS = {"ramp": "Ramp", "rate": "Rate", "weights": "Weights", "trial": "Trial"}
_CHOICES = {
    "on_abort": ("roll_back", "stop", "freeze"),
    "late_joiners": ("afterwards", "last_wave", "never"),
    "trial.mode": ("shadow", "canary"),
    "abort_when.reason": tuple(sorted(CAUSES)),
}
_FIRST = {"ramp": "first", "trial": "mode", "weights": "failures", "rate": "factor"}
_FLAGS = ("consent", "trial.required")
_SPLIT = ("waves", "metrics_required", "approvals.by")
_EXAMPLES = {
    "selector": "site in (oslo,bergen),hw/class=pi5",
    "concurrency": "10%",
    "abort_when.failures": "3 or 5%",
    "approvals.before": "finish, every, or 2",
    "approvals.by": "anna, ben",
    "maintenance.days": "mon-fri",
    "maintenance.start": "22:00",
    "maintenance.end": "06:00",
    "metrics_required": "latency",
    "rate.per_minute": "100",
    "download_s": "30m",
    "defer_s_max": "2d",
}


def document_of(given: Mapping[str, str]) -> str:
    """Return the document that a filled-in form writes, whether it can be or not; what it does not know stays out."""
    found: Built = {}
    for _, _, _, names in _GROUPS:
        for name in names:
            if "." not in name and name in given:
                _put(found, name, given[name], name)
    for name in (path for _, _, _, names in _GROUPS for path in names if "." in path):
        if name in given:
            _put(found, name, given[name], name)
    for group in _LISTS:
        names = next(names for key, _, _, names in _GROUPS if key == group)
        rows: list[Built] = []
        for place in range(ROWS_MAX):
            row: Built = {}
            for name in names:
                _put(row, name, given.get(f"{group}.{place}.{name}", ""), f"{group}.{name}")
            if row:
                rows.append(row)
        if rows:
            found[group] = rows
    return str(yaml.safe_dump(found, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None))


def groups(policy: Policy) -> tuple[Group, ...]:
    """Return the form as `policy` fills it in."""
    return filled(fields_of(policy))


def filled(given: Mapping[str, str]) -> tuple[Group, ...]:
    """Return the form with these values in it, by name."""
    texts = descriptions()

    def field(name: str, path: str, cls: str, key: str) -> Field:
        kind: Kind = "flag" if path in _FLAGS else "choice" if path in _CHOICES else "text"
        usual = _USUAL.get(path, "")
        return Field(
            name=name,
            label=_LABELS.get(path, key.removesuffix("_s").replace("_s_", " ").replace("_", " ").capitalize()),
            hint=texts[cls][1].get(key, ""),
            kind=kind,
            choices=_CHOICES.get(path, ()),
            usual=usual or _EXAMPLES.get(path, ""),
            value=given.get(name, "")[:VALUE_MAX],
        )

    made = []
    for group, title, is_usual, names in _GROUPS:
        if group in _LISTS:
            count = sum(bool(given.get(f"{group}.{place}.{names[0]}")) for place in range(ROWS_MAX))
            rows = tuple(
                tuple(field(f"{group}.{place}.{name}", f"{group}.{name}", _LISTS[group], name) for name in names)
                for place in range(min(ROWS_MAX, max(ROWS_MIN, count + 1)))
            )
            made.append(Group(group, title, (), is_usual, rows, is_used=count > 0))
            continue
        fields = []
        for path in names:
            parent, _, key = path.rpartition(".")
            fields.append(field(path, path, _STRUCTS.get(parent, "Policy"), key))
        made.append(Group(group, title, tuple(fields), is_usual, is_used=any(each.value for each in fields)))
    return tuple(made)


def fields_of(policy: Policy) -> dict[str, str]:
    """Return what a form is filled in with to mean `policy`, by name; what is default stays out."""
    written = yaml.safe_load(dump(policy))
    assert isinstance(written, dict), "a policy is a mapping"
    return dict(_flat(written, ""))


def _flat(found: Mapping[str, object], prefix: str) -> list[tuple[str, str]]:
    flat: list[tuple[str, str]] = []
    for key, value in found.items():
        path = f"{prefix}{key}"
        match value:
            case dict():
                # One that says nothing but that it is there is told by its first field.
                flat += _flat(value, f"{path}.") or [(f"{path}.{_FIRST[path]}", _USUAL[f"{path}.{_FIRST[path]}"])]
            case list() if path in _LISTS:
                for place, row in enumerate(value):
                    flat += _flat(row, f"{path}.{place}.")
            case list():
                flat.append((path, ", ".join(map(str, value))))
            case bool():
                flat.append((path, "true" if value else ""))
            case _:
                flat.append((path, str(value)))
    return flat


def _put(into: Built, name: str, text: str, path: str) -> None:
    """Put one field's value where its path says, as YAML would read it; nothing when it is empty."""
    said = text.strip()[:VALUE_MAX]
    if not said:
        return
    value = _value(said, path)
    if path in _SPLIT:
        value = [_value(each.strip(), path) for each in said.split(",") if each.strip()]
    parent, _, key = name.rpartition(".")
    if parent:
        inside = into.setdefault(parent, {})
        assert isinstance(inside, dict), "only structures have fields"
        inside[key] = value
    else:
        into[key] = value


def _value(text: str, path: str) -> object:
    if path in _FLAGS:
        return text in ("true", "on")
    if path in ("selector", "approvals.by", "maintenance.start", "maintenance.end", "maintenance.days"):
        return text
    try:
        number = float(text) if len(text) <= units.TEXT_MAX and text[:1] in "+-.0123456789" else None
    except ValueError:
        number = None
    if number is None or number != number or number in (float("inf"), float("-inf")):
        return text
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _defaults() -> dict[str, str]:
    found: dict[str, str] = {}

    def take(value: msgspec.Struct, prefix: str) -> None:
        for each in msgspec.structs.fields(value):
            path, held = f"{prefix}{each.name}", getattr(value, each.name)
            if isinstance(held, msgspec.Struct):
                take(held, f"{path}.")
            elif held is None or isinstance(held, bool):
                continue
            elif isinstance(held, tuple):
                found[path] = ", ".join(map(str, held))
            elif path in units.SHARES:
                found[path] = f"{100 * held:g}%"
            elif units.is_duration(path):
                said = units.duration_text(float(held))
                found[path] = said if isinstance(said, str) else f"{said:g}s"
            else:
                found[path] = f"{held:g}" if isinstance(held, float) else str(held)

    take(Policy(), "")
    take(Ramp(), "ramp.")
    take(Rate(per_minute=1), "rate.")
    take(Trial(), "trial.")
    return found | {"rate.per_minute": ""}


_USUAL = _defaults()
