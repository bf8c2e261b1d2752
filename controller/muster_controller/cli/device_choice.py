"""The options by which commands choose devices, and what they are in the API's words."""

from typing import Annotated

import typer

from muster_controller.api.standing import Standing
from muster_controller.cli import completion

SelectorOption = Annotated[
    str | None,
    typer.Option(
        "--selector", "-s", help="As in policies: site in (oslo,bergen),!spare", autocompletion=completion.selectors
    ),
]
StateOption = Annotated[Standing | None, typer.Option("--state", help="How it stands against what it should run.")]
OnlineOption = Annotated[bool | None, typer.Option("--online/--offline", help="Only these.")]
ClassOption = Annotated[str | None, typer.Option("--class", help="Of this class.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", "-l", help="key=value; repeat it.")]

Chosen = dict[str, str | int | list[str]]


def chosen(
    selector: str | None,
    state: Standing | None,
    online: bool | None,
    device_class: str | None,
    label: list[str] | None,
    **more: str | None,
) -> Chosen:
    """Return the filter, without what was not given."""
    said: dict[str, str | list[str] | None] = {
        "selector": selector,
        "state": None if state is None else state.value,
        "online": None if online is None else str(online).lower(),
        "class": device_class,
        "label": label or None,
        **more,
    }
    return {key: value for key, value in said.items() if value is not None}
