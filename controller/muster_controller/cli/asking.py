"""One request to the API, for commands that ask no more; a refusal ends the command with its exit code."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import typer

from muster_controller.cli.client import Api, connect, refuse
from muster_shared.errors import MusterError

LISTED_MAX = 1000

T = TypeVar("T")


def get(context: typer.Context, path: str, params: Mapping[str, str | int | list[str]] | None = None) -> Any:
    return _asked(context, lambda api: api.get(path, params))


def listed(context: typer.Context, path: str, name: str) -> list[Any]:
    return _asked(context, lambda api: api.pages(path, name, LISTED_MAX, {}))


def post(context: typer.Context, path: str, body: object) -> Any:
    return _asked(context, lambda api: api.post(path, body))


def delete(context: typer.Context, path: str) -> None:
    _asked(context, lambda api: api.delete(path))


def put(context: typer.Context, path: str, body: object) -> Any:
    return _asked(context, lambda api: api.put(path, body))


def _asked(context: typer.Context, ask: Callable[[Api], T]) -> T:
    try:
        with connect(context) as api:
            return ask(api)
    except MusterError as error:
        refuse(error)
