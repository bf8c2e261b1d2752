"""What every command says: a value as JSON or YAML for programs, or as text for people; errors on stderr, exit code 1.

`--yaml` and `--watch` come from outside of the commands (`outfit`): they change how `emit` speaks.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from typing import NoReturn

import msgspec
import typer
import yaml
from rich.console import Console

from muster_shared.errors import MusterError

Human = Callable[[Console], None]


class Form(Enum):
    TEXT = "text"
    JSON = "json"
    YAML = "yaml"


class Lost(Exception):
    """No controller answered while a command is repeated: it is tried again."""


@dataclass(frozen=True)
class Speaking:
    """How `emit` speaks while a command runs."""

    form: Form
    repeated: Callable[[str | Human], None] | None = None
    """Of a command that is repeated: takes what it says, a document or how people are told."""


_SPEAKING: ContextVar[Speaking | None] = ContextVar("speaking", default=None)


@contextmanager
def speaking(how: Speaking) -> Iterator[None]:
    token = _SPEAKING.set(how)
    try:
        yield
    finally:
        _SPEAKING.reset(token)


def is_repeated() -> bool:
    """Whether the command that runs will be run again: it does not end where no controller answers."""
    how = _SPEAKING.get()
    return how is not None and how.repeated is not None


def spoken(otherwise: Form) -> Form:
    """Return how the command that runs speaks; `otherwise` where only its own options say it."""
    how = _SPEAKING.get()
    return otherwise if how is None else how.form


def emit(value: object, as_json: bool, human: Human) -> None:
    """Print `value` (dataclasses, structs and plain containers) as one document, or let `human` print it."""
    how = _SPEAKING.get() or Speaking(Form.JSON if as_json else Form.TEXT)
    if how.form is Form.TEXT:
        if how.repeated is not None:
            how.repeated(human)
        else:
            human(Console())
        return
    said = written(value, how.form, is_line=how.repeated is not None)
    if how.repeated is not None:
        how.repeated(said)
    else:
        sys.stdout.write(said)


def written(value: object, form: Form, *, is_line: bool = False) -> str:
    """Return `value` as a document with its end of line; `is_line`: JSON on one line, YAML with its `---`."""
    if form is Form.YAML:
        plain = msgspec.to_builtins(value, str_keys=True)
        return yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, explicit_start=is_line, width=120)
    raw = msgspec.json.encode(value)
    return (raw if is_line else msgspec.json.format(raw, indent=2)).decode() + "\n"


def fail(error: MusterError | OSError | str) -> NoReturn:
    """Say on stderr what is wrong and leave with exit code 1."""
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
    raise typer.Exit(1)
