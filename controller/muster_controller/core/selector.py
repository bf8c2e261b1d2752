"""Label selectors in Kubernetes' grammar and with its semantics, over a device's labels and what it reports of itself.

    a=b   a==b   a!=b   a in (x,y)   a notin (x,y)   a   !a      and a comma, which means "and"

As in Kubernetes `!=` and `notin` also match a device that lacks the key. Its `>` and `<` are not part of this.
Source: k8s.io/apimachinery/pkg/labels. Pure: who the devices are is said by the caller.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

from muster_shared.errors import MusterError
from muster_shared.messages import Hardware

TEXT_MAX = 4096
RESERVED = ("hw/", "agent/")
"""Prefixes of what a device reports of itself. Labels in a device's own configuration cannot take them."""
_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_SPACE = " \t\r\n"
_SPECIAL = "=!(),<>"
_NAME_MAX, _PREFIX_MAX = 63, 253


class SelectorInvalid(MusterError):
    """Text that is no selector.

    Attributes:
        position: Where it goes wrong, 0..len(text).
        expected: What could stand there.
    """

    def __init__(self, text: str, position: int, found: str, expected: str) -> None:
        shown = "".join(" " if letter in _SPACE else letter for letter in text)
        start = max(0, position - 60)
        excerpt = f"{'…' if start else ''}{shown[start : position + 60]}{'…' if position + 60 < len(text) else ''}"
        caret = " " * (position - start + (1 if start else 0)) + "^"
        super().__init__(f"{found} at position {position + 1}; expected {expected}\n  {excerpt}\n  {caret}")
        self.position = position
        self.expected = expected


class Operator(Enum):
    IN = "in"
    NOT_IN = "notin"
    EXISTS = "exists"
    MISSING = "!"


@dataclass(frozen=True)
class Requirement:
    """One condition on one key. `values` has at least one value for IN and NOT_IN, and none otherwise."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        match self.operator:
            case Operator.IN:
                return self.key in labels and labels[self.key] in self.values
            case Operator.NOT_IN:
                return self.key not in labels or labels[self.key] not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.MISSING:
                return self.key not in labels

    def __str__(self) -> str:
        match self.operator:
            case Operator.EXISTS:
                return self.key
            case Operator.MISSING:
                return f"!{self.key}"
        values = ",".join(sorted(self.values))
        if len(self.values) == 1:
            return f"{self.key}{'=' if self.operator is Operator.IN else '!='}{values}"
        return f"{self.key} {self.operator.value} ({values})"


@dataclass(frozen=True)
class Selector:
    """Conditions that must all hold, in canonical order; none of them selects every device. `str()` is canonical."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(requirement.matches(labels) for requirement in self.requirements)

    @property
    def keys(self) -> frozenset[str]:
        """The labels that decide; a change of any other moves no device."""
        return frozenset(requirement.key for requirement in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


def parse(text: str) -> Selector:
    """Return the selector that `text` says, empty text selecting everything. Raises SelectorInvalid."""
    if len(text) > TEXT_MAX:
        raise SelectorInvalid(text, TEXT_MAX, f"a selector of {len(text)} characters", f"at most {TEXT_MAX}")
    return Selector(tuple(sorted(set(_Parser(text).requirements()), key=str)))


def equals(labels: Mapping[str, str]) -> str:
    """Return the canonical selector for devices that have all of `labels`. Raises SelectorInvalid."""
    return str(parse(",".join(f"{key}={value}" for key, value in sorted(labels.items()))))


def contradiction(selector: Selector) -> str | None:
    """Return why no device can ever match, such as `a=x` with `a=y`; None when some device could."""
    by_key: dict[str, list[Requirement]] = {}
    for requirement in selector.requirements:
        by_key.setdefault(requirement.key, []).append(requirement)
    for key, requirements in sorted(by_key.items()):
        operators = {requirement.operator for requirement in requirements}
        if Operator.MISSING in operators and operators & {Operator.IN, Operator.EXISTS}:
            return f"{key} must both be there and be missing"
        allowed = [requirement.values for requirement in requirements if requirement.operator is Operator.IN]
        barred = [requirement.values for requirement in requirements if requirement.operator is Operator.NOT_IN]
        if allowed and not allowed[0].intersection(*allowed).difference(*barred):
            return f"no value of {key} meets all of its conditions"
    return None


def device_labels(labels: Mapping[str, str], hardware: Hardware | None, agent_version: str | None) -> dict[str, str]:
    """Return all that a selector can see of a device: its own labels, and what it reports under reserved keys.

    `hw/class`, `hw/arch`, `hw/cpus`, `hw/memory-mb`, `hw/runtime.NAME`, `hw/accelerator.NAME` ("true") and
    `agent/version`; what is unknown is missing. Own labels under `hw/` and `agent/` are left out: nobody can claim
    hardware that the agent did not find.
    """
    found = {key: value for key, value in labels.items() if not key.startswith(RESERVED)}
    if agent_version:
        found["agent/version"] = label_safe(agent_version)
    if hardware is None:
        return found
    found |= {
        "hw/class": label_safe(hardware.device_class),
        "hw/arch": label_safe(hardware.arch),
        "hw/cpus": str(hardware.cpu_count),
    }
    if hardware.memory_mb > 0:
        found["hw/memory-mb"] = str(hardware.memory_mb)
    for kind, names in (("runtime", hardware.runtimes), ("accelerator", hardware.accelerators)):
        for name in names:
            if safe := label_safe(name, _NAME_MAX - len(kind) - 1):
                found[f"hw/{kind}.{safe}"] = "true"
    return found


def label_safe(text: str, length_max: int = _NAME_MAX) -> str:
    """Return `text` as a label value may be: other characters become `-`, the ends are letters or digits."""
    return re.sub(r"[^-A-Za-z0-9_.]", "-", text)[:length_max].strip("-_.")


class _Parser:
    """Recursive descent over one text; every refusal tells where and what was expected."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def requirements(self) -> Iterator[Requirement]:
        if self._peek() == "":
            return
        while True:
            yield self._requirement()
            match self._peek():
                case "":
                    return
                case ",":
                    self._at += 1
                case _:
                    self._refuse("a comma or the end")

    def _requirement(self) -> Requirement:
        if self._peek() == "!":
            self._at += 1
            return Requirement(self._key(), Operator.MISSING)
        key = self._key()
        match self._peek():
            case "" | ",":
                return Requirement(key, Operator.EXISTS)
            case "=":
                self._at += 2 if self._text.startswith("==", self._at) else 1
                return Requirement(key, Operator.IN, frozenset({self._value(after_operator=True)}))
            case "!" if self._text.startswith("!=", self._at):
                self._at += 2
                return Requirement(key, Operator.NOT_IN, frozenset({self._value(after_operator=True)}))
        start, word = self._at, self._word()
        if word not in ("in", "notin"):
            self._at = start
            self._refuse("=, ==, !=, in, notin, a comma or the end")
        return Requirement(key, Operator(word), self._values())

    def _values(self) -> frozenset[str]:
        if self._peek() != "(":
            self._refuse("( and a list of values")
        self._at += 1
        if self._peek() == ")":
            self._refuse("at least one value")
        found: set[str] = set()
        while True:
            found.add(self._value(after_operator=False))
            match self._peek():
                case ")":
                    self._at += 1
                    return frozenset(found)
                case ",":
                    self._at += 1
                case _:
                    self._refuse("a comma or )")

    def _value(self, *, after_operator: bool) -> str:
        """One value, which may be empty where a comma or the end of its list follows."""
        following = self._peek()
        if following in (("", ",") if after_operator else (",", ")")):
            return ""
        start, word = self._at, self._word()
        if len(word) > _NAME_MAX or not _NAME.fullmatch(word):
            self._at = start
            self._refuse(
                f"a value: at most {_NAME_MAX} letters, digits, '-', '_' or '.', with a letter or digit at both ends"
            )
        return word

    def _key(self) -> str:
        self._peek()
        start, word = self._at, self._word()
        prefix, slash, name = word.rpartition("/")
        self._at = start
        if not _NAME.fullmatch(name) or len(name) > _NAME_MAX:
            self._refuse(
                f"a key: a name of at most {_NAME_MAX} letters, digits, '-', '_' or '.' with a letter or digit at both"
                " ends, after an optional prefix and '/'"
            )
        if slash and (len(prefix) > _PREFIX_MAX or not all(map(_is_dns_label, prefix.split(".")))):
            self._refuse(f"a prefix that is a DNS name in lower case, at most {_PREFIX_MAX} characters, before '/'")
        self._at = start + len(word)
        return word

    def _word(self) -> str:
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in _SPACE + _SPECIAL:
            self._at += 1
        return self._text[start : self._at]

    def _peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while self._at < len(self._text) and self._text[self._at] in _SPACE:
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _refuse(self, expected: str) -> NoReturn:
        start = self._at
        found = self._peek()
        if found and found not in _SPECIAL:
            found = self._word()
        self._at = start
        raise SelectorInvalid(self._text, start, f"found {found[:40]!r}" if found else "found the end", expected)


def _is_dns_label(text: str) -> bool:
    return _DNS_LABEL.fullmatch(text) is not None
