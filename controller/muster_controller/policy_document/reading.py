"""From a document to a Policy: every value against the type of its field, every refusal with its line.

The types are `core.policy`'s, read through msgspec; the tree is `nodes`'. A file's name is only for messages.
"""

import difflib
import re
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec
from msgspec import inspect

from muster_controller.core import selector as selectors
from muster_controller.core.policy import Policy, PolicyInvalid, check
from muster_controller.policy_document import units
from muster_controller.policy_document.nodes import Entries, Items, Node, NotYaml, Scalar, compose, lines_of, text_of

Built = bool | int | float | str | None | list["Built"] | dict[str, "Built"]
_SHOWN_MAX = 60
_MESSAGE_MAX = 1000
_PATH = re.compile(r"[a-z_]+(?:[.][a-z_]+|\[[0-9]+\])*")


def parse_policy(raw: bytes | str, name: str = "policy") -> Policy:
    """Return the policy in `raw`, YAML or JSON, checked.

    Args:
        raw: At most 64 KiB, UTF-8.
        name: Of the file, as messages show it.
    Raises:
        PolicyInvalid: with file, line, field, the line itself, and what to write.
    """
    text = ""
    try:
        text = text_of(raw)
        root = compose(text)
    except NotYaml as error:
        _refuse(name, lines_of(text), str(error), None, error.line)
    reader = _Reader(name, lines_of(text))
    built = reader.policy(root)
    try:
        policy = msgspec.convert(built, Policy)
        check(policy)
    except msgspec.ValidationError as error:
        _refuse(name, reader.text, str(error), None, None)
    except PolicyInvalid as error:
        line = reader.line_of(error.field) or reader.line_of_any(str(error))
        _refuse(name, reader.text, str(error), error.field, line)
    return policy


def _refuse(name: str, text: list[str], message: str, field: str | None, line: int | None) -> NoReturn:
    at = name if line is None else f"{name}:{line}"
    quoted = ""
    if line is not None and line <= len(text) and (shown := text[line - 1].strip()):
        quoted = f"\n  {line} | {''.join(letter if letter.isprintable() else '·' for letter in shown[:160])}"
    said = message if len(message) <= _MESSAGE_MAX else f"{message[:_MESSAGE_MAX]}…"  # It may quote a value.
    raise PolicyInvalid(f"{at}: {said}{quoted}", field, line)


@dataclass
class _Reader:
    name: str
    text: list[str]
    lines: dict[str, int] = field(default_factory=dict)
    """Where each path stands."""

    def line_of(self, path: str | None) -> int | None:
        """The line of `path`, or of what it is in."""
        while path:
            if path in self.lines:
                return self.lines[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return None

    def line_of_any(self, message: str) -> int | None:
        """The line of the first field that `message` speaks of: one that is not written contradicts one that is."""
        return next((self.lines[word] for word in _PATH.findall(message) if word in self.lines), None)

    def policy(self, root: Node) -> Built:
        if not isinstance(root, Entries):
            self._refuse(f"a policy is a mapping of fields such as 'waves: [5, 25%]', not {_shown(root)}", "", root)
        written = {key.text: (key, value) for key, value in root.entries}
        if "version" in written:
            _, version = written.pop("version")
            if not isinstance(version, Scalar) or version.text != "1":
                self._refuse(f"version is {_shown(version)}; this controller reads version 1", "version", version)
        ramp = written.get("ramp")
        if "waves" in written and ramp is not None and not _is_null(ramp[1]):
            self._refuse("waves and ramp are both given; write one of them", "ramp", ramp[0])
        return self._fields(Entries(tuple(written.values()), root.line), Policy, "")

    # -- by type -----------------------------------------------------------------------------------------------------

    def _read(self, node: Node, kind: inspect.Type, path: str) -> Built:
        if path == "selector" and isinstance(node, Entries):
            return self._equalities(node)
        kinds = _kinds(kind)
        if isinstance(node, Entries):
            for one in kinds:
                if isinstance(one, inspect.StructType):
                    return self._fields(node, one.cls, path)
        elif isinstance(node, Items):
            for one in kinds:
                if isinstance(one, inspect.VarTupleType):
                    return self._list(node, one.item_type, path)
        else:
            return self._scalar(node, kinds, path)
        self._refuse(f"{path} is {_shown(node)}; write {_expected(kinds, path)}", path, node)

    def _fields(self, node: Entries, cls: type, path: str) -> Built:
        known = {each.encode_name: each for each in inspect.type_info(cls).fields}  # type: ignore[attr-defined]
        built: dict[str, Built] = {}
        for key, value in node.entries:
            at = f"{path}.{key.text}" if path else key.text
            if key.text not in known:
                self._refuse(self._unknown(key.text, path, list(known)), at, key)
            self.lines[at] = key.line
            built[key.text] = self._read(value, known[key.text].type, at)
        for name, each in known.items():
            if each.required and name not in built:
                self._refuse(f"{path or 'the policy'} lacks {name}; write it", f"{path}.{name}", node)
        return built

    def _list(self, node: Items, kind: inspect.Type, path: str) -> Built:
        built = []
        for position, item in enumerate(node.items):
            at = f"{path}[{position}]"
            self.lines[at] = item.line
            built.append(self._read(item, kind, at))
        return built

    def _scalar(self, node: Scalar, kinds: tuple[inspect.Type, ...], path: str) -> Built:
        value = node.value
        for kind in kinds:
            match kind, value:
                case inspect.NoneType(), None:
                    return None
                case inspect.BoolType(), bool():
                    return value
                case ((inspect.IntType() | inspect.FloatType()), bool()):
                    pass
                case inspect.IntType(), int():
                    return value
                case inspect.FloatType(), int() | float():
                    return float(value)
                case inspect.FloatType(), str() if units.is_duration(path) and units.seconds(value) is not None:
                    return units.seconds(value)
                case inspect.FloatType(), str() if path in units.SHARES and units.share(value) is not None:
                    return units.share(value)
                case inspect.StrType(), str():
                    return value
                case inspect.LiteralType(), str() if value in kind.values:
                    return value
        near = ""
        if isinstance(value, str):
            words = [word for kind in kinds if isinstance(kind, inspect.LiteralType) for word in kind.values]
            near = _near(value, [str(word) for word in words])
        self._refuse(f"{path} is {_shown(node)}; write {_expected(kinds, path)}{near}", path, node)

    def _equalities(self, node: Entries) -> Built:
        """The old form of a selector, `{site: berlin}`."""
        labels: dict[str, str] = {}
        for key, value in node.entries:
            if not isinstance(value, Scalar) or value.value is None:
                self._refuse(f"selector.{key.text} is {_shown(value)}; write the label's value", "selector", key)
            labels[key.text] = value.text
            try:
                selectors.equals({key.text: value.text})
            except selectors.SelectorInvalid as error:
                self._refuse(f"selector: {error}", f"selector.{key.text}", key)
        try:
            return selectors.equals(labels)
        except selectors.SelectorInvalid as error:
            self._refuse(f"selector: {error}", "selector", node)

    # -- refusals ----------------------------------------------------------------------------------------------------

    def _refuse(self, message: str, path: str, node: Node) -> NoReturn:
        _refuse(self.name, self.text, message, path or None, node.line)

    def _unknown(self, key: str, path: str, known: list[str]) -> str:
        said = f"{key[:_SHOWN_MAX]!r} is no field of {path or 'a policy'}"
        if near := _near(key, known):
            return said + near
        elsewhere = [each for each in paths() if each.rpartition(".")[2] == key and each != key]
        if elsewhere:
            return f"{said}; did you mean {' or '.join(elsewhere)}?"
        return f"{said}; it has {', '.join(known)}"


def paths() -> tuple[str, ...]:
    """Return every field of a policy by its path; `[]` stands for each entry of a list."""
    return tuple(_paths(Policy, ""))


def _paths(cls: type, prefix: str) -> list[str]:
    found = []
    for each in inspect.type_info(cls).fields:  # type: ignore[attr-defined]
        path = f"{prefix}{each.encode_name}"
        found.append(path)
        for kind in _kinds(each.type):
            is_list = isinstance(kind, inspect.VarTupleType)
            inner = kind.item_type if isinstance(kind, inspect.VarTupleType) else kind
            if isinstance(inner, inspect.StructType):
                found += _paths(inner.cls, f"{path}{'[]' if is_list else ''}.")
    return found


def _near(word: str, known: list[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.value is None


def _shown(node: Node) -> str:
    match node:
        case Entries():
            return "a mapping"
        case Items():
            return "a list"
        case Scalar(value=None):
            return "empty"
        case Scalar(value=str()):
            return f"the text {node.text[:_SHOWN_MAX]!r}"
        case _:
            return node.text[:_SHOWN_MAX]


def _expected(kinds: tuple[inspect.Type, ...], path: str) -> str:
    said = []
    for kind in kinds:
        match kind:
            case inspect.BoolType():
                said.append("true or false")
            case inspect.IntType():
                said.append("a whole number")
            case inspect.FloatType() if units.is_duration(path):
                said.append('seconds, or a time such as "90s", "15m", "2h" or "7d"')
            case inspect.FloatType() if path in units.SHARES:
                said.append('a share such as 0.9 or "90%"')
            case inspect.FloatType():
                said.append("a number")
            case inspect.StrType() if len(kinds) > 1 and any(isinstance(each, inspect.IntType) for each in kinds):
                said.append('a share such as "25%"')
            case inspect.StrType():
                said.append("text")
            case inspect.LiteralType():
                said.extend(f'"{value}"' for value in kind.values)
            case inspect.VarTupleType():
                said.append(f"a list, each entry {_expected(_kinds(kind.item_type), path + '[]')}")
            case inspect.StructType():
                said.append(f"a mapping of {', '.join(each.encode_name for each in kind.fields)}")
    return " or ".join(said)


def _kinds(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)
