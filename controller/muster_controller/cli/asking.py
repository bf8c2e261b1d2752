"""One request to the API, for commands that ask no more; a refusal ends the command with its exit code."""

from typing import Any

import typer

from muster_controller.cli.client import connect, refuse
from muster_shared.errors import MusterError

LISTED_MAX = 1000


def get(context: typer.Context, path: str) -> Any:
    try:
        with connect(context) as api:
            return api.get(path)
    except MusterError as error:
        refuse(error)


def listed(context: typer.Context, path: str, name: str) -> list[Any]:
    try:
        with connect(context) as api:
            return api.pages(path, name, LISTED_MAX, {})
    except MusterError as error:
        refuse(error)


def post(context: typer.Context, path: str, body: object) -> Any:
    try:
        with connect(context) as api:
            return api.post(path, body)
    except MusterError as error:
        refuse(error)


def delete(context: typer.Context, path: str) -> None:
    try:
        with connect(context) as api:
            api.delete(path)
    except MusterError as error:
        refuse(error)


def put(context: typer.Context, path: str, body: object) -> Any:
    try:
        with connect(context) as api:
            return api.put(path, body)
    except MusterError as error:
        refuse(error)
