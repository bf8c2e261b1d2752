"""YAML as a bounded tree that knows its lines, without YAML's surprises. JSON is read as the YAML that it is.

Only true, false, null and decimal numbers are special: `no` is a word, and 01:00 is a time and not sixty minutes.
No anchors, tags, second documents or duplicate keys. Built from PyYAML's events, so nothing recurses.
"""

import re
from dataclasses import dataclass, field

import yaml

BYTES_MAX = 64 * 1024
DEPTH_MAX = 16
NODES_MAX = 4000
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # YAML's own, so that our lines are its lines.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]{1,4})?")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")


class NotYaml(Exception):
    """Text that is no such tree; `line` from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Scalar:
    """`text` as it stands in the document, without quotes; `value` is what it means."""

    text: str
    value: bool | int | float | str | None
    line: int


@dataclass(frozen=True)
class Items:
    """A list."""

    items: tuple["Node", ...]
    line: int


@dataclass(frozen=True)
class Entries:
    """A mapping; keys are plain text, each there once."""

    entries: tuple[tuple[Scalar, "Node"], ...]
    line: int


Node = Scalar | Items | Entries


@dataclass
class _Open:
    """A list or mapping whose end has not come yet."""

    line: int
    is_mapping: bool
    nodes: list[Node] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)


def lines_of(text: str) -> list[str]:
    return _BREAK.split(text)


def text_of(raw: bytes | str) -> str:
    """Return the text of a document. Raises NotYaml."""
    if len(raw) > BYTES_MAX:
        raise NotYaml(f"a document of {len(raw)} bytes; the limit is {BYTES_MAX}")
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise NotYaml(f"byte {error.start} is not UTF-8; save the file as UTF-8", line) from error
    if text.lstrip()[:1] in ("{", "["):
        text = text.replace("\t", " ")  # JSON may be indented with tabs, YAML may not; within a string JSON has none.
    return text


def compose(text: str) -> Node:
    """Return the one document in `text`. Raises NotYaml."""
    try:
        root = _build(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise NotYaml(f"not YAML: {said}", mark.line + 1 if mark else None) from error
    except yaml.reader.ReaderError as error:
        line = len(_BREAK.findall(text[: error.position])) + 1
        raise NotYaml(f"a character that YAML does not allow: {text[error.position]!a}", line) from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # An escape that names no character, and its like.
        raise NotYaml(f"not YAML: {error}") from error
    if root is None:
        raise NotYaml("the document is empty; write {} for the default policy")
    return root


def _build(text: str) -> Node | None:
    root: Node | None = None
    stack: list[_Open] = []
    documents = nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = 1 if event.start_mark is None else event.start_mark.line + 1
        made: Node
        match event:
            case yaml.DocumentStartEvent():
                documents += 1
                if documents > 1:
                    raise NotYaml("a second document begins; a policy is one", line)
                continue
            case yaml.NodeEvent() if event.anchor is not None:
                raise NotYaml(f"an anchor or alias ({str(event.anchor)[:40]!r}); write it out", line)
            case yaml.CollectionStartEvent() | yaml.ScalarEvent() if event.tag not in (None, "!"):
                raise NotYaml(f"a tag ({str(event.tag)[:40]!r}); leave it out", line)
            case yaml.CollectionStartEvent():
                if len(stack) >= DEPTH_MAX:
                    raise NotYaml(f"nested deeper than {DEPTH_MAX}", line)
                stack.append(_Open(line, isinstance(event, yaml.MappingStartEvent)))
                continue
            case yaml.ScalarEvent():
                made = _scalar(event.value, is_plain=event.implicit[0], line=line)
            case yaml.CollectionEndEvent():
                made = _closed(stack.pop())
            case _:
                continue
        nodes += 1
        if nodes > NODES_MAX:
            raise NotYaml(f"more than {NODES_MAX} values", line)
        if not stack:
            root = made
        else:
            _add(stack[-1], made)
    return root


def _add(parent: _Open, made: Node) -> None:
    if parent.is_mapping and len(parent.nodes) % 2 == 0:
        if not isinstance(made, Scalar):
            raise NotYaml("a key that is not a word", made.line)
        if made.text in parent.keys:
            raise NotYaml(f"{made.text[:80]!r} is given twice", made.line)
        parent.keys.add(made.text)
    parent.nodes.append(made)


def _closed(done: _Open) -> Node:
    if not done.is_mapping:
        return Items(tuple(done.nodes), done.line)
    keys = [node for node in done.nodes[::2] if isinstance(node, Scalar)]
    return Entries(tuple(zip(keys, done.nodes[1::2], strict=True)), done.line)


def _scalar(text: str, *, is_plain: bool, line: int) -> Scalar:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        text = _without_surrogates(text, line)
    value: bool | int | float | str | None = text
    if is_plain:
        if text in _NULLS:
            value = None
        elif text in _WORDS:
            value = _WORDS[text]
        elif _INT.fullmatch(text):
            value = int(text)
        elif FLOAT.fullmatch(text):
            value = float(text)
    return Scalar(text, value, line)


def _without_surrogates(text: str, line: int) -> str:
    """JSON escapes a character beyond 16 bits as two; YAML's reader leaves them so."""
    try:
        return text.encode("utf-16", "surrogatepass").decode("utf-16")
    except UnicodeDecodeError as error:
        raise NotYaml("half of an escaped character (\\ud800 to \\udfff)", line) from error
