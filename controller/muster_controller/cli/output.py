"""What every command says: a value as JSON for programs or as text for people; errors on stderr, exit code 1."""

import sys
from collections.abc import Callable
from typing import NoReturn

import msgspec
import typer
from rich.console import Console

from muster_shared.errors import MusterError


def emit(value: object, as_json: bool, human: Callable[[Console], None]) -> None:
    """Print `value` (dataclasses, structs and plain containers) as one JSON document, or let `human` print it."""
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
        return
    human(Console())


def fail(error: MusterError | OSError | str) -> NoReturn:
    """Say on stderr what is wrong and leave with exit code 1."""
    Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
    raise typer.Exit(1)
