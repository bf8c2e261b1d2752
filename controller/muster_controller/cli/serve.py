"""`muster serve`: the controller in the foreground."""

from pathlib import Path
from typing import Annotated

import typer

from muster_controller.broker.embedded import BrokerKind
from muster_controller.cli.output import fail
from muster_controller.config import BROKER_PORT, DATA, FLEET, PORT, ServerConfig
from muster_shared.errors import MusterError
from muster_shared.ids import FleetId


def serve(
    data: Annotated[Path, typer.Option("--data", "-d", envvar="MUSTER_DATA", help="The controller's folder.")] = DATA,
    database: Annotated[
        str | None,
        typer.Option(
            envvar="MUSTER_DATABASE",
            help="postgresql://user:password@host/name; keep passwords in the environment. Default: SQLite in --data.",
        ),
    ] = None,
    fleet: Annotated[str, typer.Option(help="The fleet's name, part of every topic.")] = FLEET,
    port: Annotated[int, typer.Option(help="Of the page and the API on 127.0.0.1; 0 takes a free one.")] = PORT,
    broker_url: Annotated[
        str | None,
        typer.Option(envvar="MUSTER_BROKER_URL", help="A broker of yours: mqtt://host:1883. Default: one is started."),
    ] = None,
    broker: Annotated[BrokerKind, typer.Option(help="Which broker to start.")] = BrokerKind.AUTO,
    broker_port: Annotated[int, typer.Option(help="Of the started broker on 127.0.0.1; 0 is free.")] = BROKER_PORT,
    seed: Annotated[
        int | None, typer.Option(help="Of the random order of devices in rollouts, to repeat a history. Default: none.")
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="One JSON object a line.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Run the controller: page, API, registry, rollouts and (unless you name yours) an MQTT broker.

    It listens on 127.0.0.1 alone, because it has no authentication yet. SIGTERM and Ctrl-C end it cleanly; whatever
    was under way goes on at the next start.
    """
    from muster_controller import server  # Slow to import, and no other command needs all of it.

    config = ServerConfig(
        data=data,
        database=database,
        fleet=FleetId(fleet),
        port=port,
        broker_url=broker_url,
        broker_kind=broker,
        broker_port=broker_port,
        seed=seed,
        log_json=log_json,
        verbose=verbose,
    )
    try:
        server.serve(config)
    except (MusterError, OSError) as error:
        fail(error)
