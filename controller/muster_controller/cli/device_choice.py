"""The options by which commands choose devices, and what they are in the API's words; a saved view keeps these."""

from typing import Annotated
from urllib.parse import parse_qs, urlencode

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
TextOption = Annotated[str | None, typer.Option("--text", "-q", help="With this in its id.")]
VersionOption = Annotated[
    str | None, typer.Option("--version", help="Serves this version.", autocompletion=completion.versions)
]
HeldOption = Annotated[bool | None, typer.Option("--held/--free", help="Pinned or quarantined, or not.")]
ErrorOption = Annotated[
    bool | None, typer.Option("--error/--no-error", help="With an error that it reported, or none.")
]
SilentOption = Annotated[float | None, typer.Option("--silent", help="Not heard for so many seconds.")]
SortOption = Annotated[
    str | None,
    typer.Option("--sort", help="id, seen, class or standing; with - in front the other way round. Default: id."),
]

Chosen = dict[str, str | int | list[str]]


def chosen(
    selector: str | None,
    state: Standing | None,
    online: bool | None,
    device_class: str | None,
    label: list[str] | None,
    *,
    text: str | None = None,
    model: str | None = None,
    version: str | None = None,
    held: bool | None = None,
    error: bool | None = None,
    silent_s: float | None = None,
    sort: str | None = None,
) -> Chosen:
    """Return the filter, without what was not given."""
    said: dict[str, str | list[str] | None] = {
        "selector": selector,
        "state": None if state is None else state.value,
        "online": _word(online),
        "class": device_class,
        "label": label or None,
        "q": text,
        "model": model,
        "version": version,
        "held": _word(held),
        "error": _word(error),
        "silent": None if silent_s is None else f"{silent_s:g}",
        "sort": sort,
    }
    return {key: value for key, value in said.items() if value is not None}


def query_of(choice: Chosen) -> str:
    """Return it as a saved view keeps it: the query of the page's address."""
    return urlencode(choice, doseq=True)


def choice_of(query: str) -> Chosen:
    """Return what a saved view chooses; the last one counts of what is said twice, but of labels."""
    said = parse_qs(query)
    return {key: values if key == "label" else values[-1] for key, values in said.items()}


def _word(flag: bool | None) -> str | None:
    return None if flag is None else str(flag).lower()
