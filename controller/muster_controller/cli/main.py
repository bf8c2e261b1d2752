"""The `muster` command: puts the groups together, and the commands that other distributions bring.

A distribution adds a command with an entry point of the group `muster.commands`: a function as typer takes it. It is
imported only when it is called, or when all commands are listed.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from muster_controller import __version__
from muster_controller.cli import devices, keys, models, rollouts, trust
from muster_controller.cli.client import EXIT_CODES, URL_VARIABLE
from muster_controller.cli.init import init
from muster_controller.cli.output import fail
from muster_controller.cli.serve import serve
from muster_controller.cli.status import status

PLUGINS = "muster.commands"


class _WithPlugins(TyperGroup):
    """The group of all commands, ours first."""

    def list_commands(self, ctx: Any) -> list[str]:
        ours = super().list_commands(ctx)
        return [*ours, *(name for name in sorted(_plugins()) if name not in ours)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        ours = super().get_command(ctx, cmd_name)
        if ours is not None:
            return ours
        plugin = _plugins().get(cmd_name)
        return None if plugin is None else _load(plugin)


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
app.command()(status)
app.add_typer(models.app, name="model")
app.add_typer(rollouts.app, name="rollout")
app.add_typer(devices.app, name="device")
app.add_typer(keys.app, name="key")
app.add_typer(trust.app, name="trust")


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"muster {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(envvar=URL_VARIABLE, help="The controller. Default: the one of ./muster-data, else port 8080."),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which version this is.")
    ] = False,
) -> None:
    context.obj = url


def main() -> None:
    """The entry point."""
    app()


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=PLUGINS)}


def _load(plugin: EntryPoint) -> Any:
    try:
        function = plugin.load()
    except ImportError as error:
        fail(f"the command {plugin.name!r} of {plugin.value} cannot be loaded: {error}")
    alone = typer.Typer(add_completion=False)
    alone.command(plugin.name)(function)
    return typer.main.get_command(alone)


if __name__ == "__main__":
    main()
