"""The `muster` command: puts the groups together, and the commands that other distributions bring.

A distribution adds a command with an entry point of the group `muster.commands`: a function as typer takes it. Its name
is the command's, with the group before a dot where it belongs into one: `demo`, `rollout.simulate`. It is imported only
when it is called, or when the commands beside it are listed.
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from muster_controller import __version__
from muster_controller.cli import (
    alerts,
    audit,
    broker,
    ca,
    completion,
    context,
    devices,
    enroll_tokens,
    export,
    keys,
    metrics,
    mixer,
    models,
    policies,
    receivers,
    rollouts,
    slo,
    tokens,
    trust,
    users,
)
from muster_controller.cli.client import CA_VARIABLE, EXIT_CODES, URL_VARIABLE
from muster_controller.cli.contexts import CONTEXT_VARIABLE
from muster_controller.cli.diff import diff
from muster_controller.cli.history import history
from muster_controller.cli.init import init
from muster_controller.cli.login import login, logout, password, whoami
from muster_controller.cli.outfit import outfit, outfitted
from muster_controller.cli.output import fail
from muster_controller.cli.review import review
from muster_controller.cli.rollback import rollback
from muster_controller.cli.serve import serve
from muster_controller.cli.status import status
from muster_controller.cli.top import top

PLUGINS = "muster.commands"
ELSEWHERE = {"demo": "muster-simulator", "rollout.simulate": "muster-simulator"}
"""Commands that we know of, and the distribution that brings them: what to say where it is not installed."""


class _WithPlugins(TyperGroup):
    """A group of commands, ours first."""

    inside = ""
    """The group's name and a dot, as in the names of entry points; empty for that of all commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        ours = super().list_commands(ctx)
        names = (name.removeprefix(self.inside) for name in sorted(_plugins()) if name.startswith(self.inside))
        return [*ours, *(name for name in names if "." not in name and name not in ours)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        ours = super().get_command(ctx, cmd_name)
        if ours is not None or "." in cmd_name:
            return ours
        name = self.inside + cmd_name
        plugin = _plugins().get(name)
        if plugin is not None:
            return _load(plugin, cmd_name)
        return _lacking(name, cmd_name) if name in ELSEWHERE else None


class _RolloutGroup(_WithPlugins):
    inside = "rollout."


app = typer.Typer(
    name="muster",
    help="Muster: models on edge devices, kept current and safe from one controller.",
    cls=_WithPlugins,
    no_args_is_help=True,
    epilog=EXIT_CODES,
    pretty_exceptions_show_locals=False,
)
app.command()(serve)
app.command()(init)
app.command(epilog=EXIT_CODES)(status)
app.command(epilog=EXIT_CODES)(top)
app.command(epilog=EXIT_CODES)(history)
app.command(epilog=EXIT_CODES)(login)
app.command(epilog=EXIT_CODES)(logout)
app.command(epilog=EXIT_CODES)(whoami)
app.command(epilog=EXIT_CODES)(password)
app.command(epilog=EXIT_CODES)(rollback)
app.command(epilog=EXIT_CODES)(diff)
app.command(epilog=EXIT_CODES)(review)
app.add_typer(context.app, name="context")
app.add_typer(models.app, name="model")
app.add_typer(rollouts.app, name="rollout", cls=_RolloutGroup)
app.add_typer(policies.app, name="policy")
app.add_typer(devices.app, name="device")
app.add_typer(enroll_tokens.app, name="enroll-token")
app.add_typer(ca.app, name="ca")
app.add_typer(broker.app, name="broker")
app.add_typer(keys.app, name="key")
app.add_typer(metrics.app, name="metrics")
app.add_typer(mixer.app, name="mixer")
app.add_typer(trust.app, name="trust")
app.add_typer(users.app, name="user")
app.add_typer(tokens.app, name="token")
app.add_typer(audit.app, name="audit")
app.add_typer(export.app, name="export")
app.command(epilog=EXIT_CODES)(alerts.alerts)
app.add_typer(alerts.app, name="alert")
app.add_typer(slo.app, name="slo")
app.add_typer(receivers.app, name="receiver")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"muster {__version__}")
        raise typer.Exit


@app.callback()
def root(
    url: Annotated[
        str | None,
        typer.Option(
            envvar=URL_VARIABLE,
            help="The controller. Default: the chosen context, else the one of ./muster-data, else port 8080.",
        ),
    ] = None,
    context_name: Annotated[
        str | None,
        typer.Option(
            "--context",
            "-c",
            envvar=CONTEXT_VARIABLE,
            help="The controller by its name, as `muster context list` shows it.",
            autocompletion=completion.contexts,
        ),
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(envvar=CA_VARIABLE, help="The CA of the controller's certificate, PEM.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    pass


outfit(app)


def main() -> None:
    """The entry point."""
    app()


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGINS)}


def _load(plugin: EntryPoint, name: str) -> Any:
    try:
        function = plugin.load()
    except ImportError as error:
        fail(f"the command {plugin.name!r} of {plugin.value} cannot be loaded: {error}")
    return _command(function, name)


def _lacking(plugin: str, name: str) -> Any:
    """Return a command, in no list, that says what to install."""

    def lacking(context: typer.Context) -> None:
        fail(f"`muster {plugin.replace('.', ' ')}` is part of {ELSEWHERE[plugin]}: `pip install {ELSEWHERE[plugin]}`")

    return _command(lacking, name, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})


def _command(function: Callable[..., object], name: str, **settings: Any) -> Any:
    alone = typer.Typer(add_completion=False)
    alone.command(name, **settings)(outfitted(function))
    return typer.main.get_command(alone)


if __name__ == "__main__":
    main()
