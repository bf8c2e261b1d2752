"""Options that every command of a kind has, added in one place: `--yaml` beside `--json`, `--watch` where one looks.

A command that takes `as_json` gets `--yaml`; one that only looks (by its name) gets `--watch` and `--every` too.
What it says goes through `output.emit`; the commands themselves know nothing of it.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from muster_controller.cli import output, watching
from muster_controller.cli.output import Form, Speaking

LOOKS = frozenset(
    {"status", "alerts", "list", "list_", "show", "devices", "waiting", "silences", "identities", "history", "calls"}
)
"""Functions that only look."""
OFFLINE = frozenset({"muster_controller.cli.context", "muster_controller.cli.policies", "muster_controller.cli.keys"})
"""Modules whose commands ask no controller: there is nothing to watch."""
EVERY_S = 10.0
_MARK = "__muster_outfitted__"

AsYaml = Annotated[bool, typer.Option("--yaml", help="Print YAML.")]
Watch = Annotated[bool, typer.Option("--watch", help="Say it again whenever something changed, until Ctrl-C.")]
Every = Annotated[
    float, typer.Option("--every", min=watching.FLOOR_S, help="With --watch: look at least so often, in seconds.")
]


def outfit(app: typer.Typer) -> None:
    """Give the commands of `app` and of its groups what is theirs. Once, after all are registered."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = outfitted(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            outfit(group.typer_instance)


def outfitted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with the options that it lacks; as it is, where it speaks no JSON."""
    signature = inspect.signature(function)
    if "as_json" not in signature.parameters or hasattr(function, _MARK):
        return function
    watches = (
        function.__name__ in LOOKS
        and function.__module__ not in OFFLINE
        and "context" in signature.parameters
        and "watch" not in signature.parameters
    )
    added = [_option("as_yaml", AsYaml, False)]
    if watches:
        added += [_option("watch_it", Watch, False), _option("every_s", Every, EVERY_S)]

    @functools.wraps(function)
    def command(
        *positional: Any, as_yaml: bool = False, watch_it: bool = False, every_s: float = EVERY_S, **given: Any
    ) -> Any:
        if as_yaml and given.get("as_json"):
            raise typer.BadParameter("give --json or --yaml")
        form = Form.YAML if as_yaml else Form.JSON if given.get("as_json") else Form.TEXT
        given["as_json"] = form is not Form.TEXT
        if watch_it:
            watching.repeat(given["context"], form, every_s, lambda: function(*positional, **given))
            return None
        if form is not Form.YAML:
            return function(*positional, **given)
        with output.speaking(Speaking(form)):
            return function(*positional, **given)

    parameters = [*signature.parameters.values(), *added]
    setattr(command, "__signature__", signature.replace(parameters=parameters))  # noqa: B010  mypy knows no such name.
    command.__annotations__ = {**function.__annotations__, **{each.name: each.annotation for each in added}}
    setattr(command, _MARK, True)
    return command


def _option(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
