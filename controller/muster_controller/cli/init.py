"""`muster init`: the operator's offline folder, and the first trust metadata of a controller on this machine."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli.mixer_cards import read_mixers
from muster_controller.cli.output import emit, fail
from muster_controller.registry.keys import OnlinePublicKeys, parse_online_keys
from muster_controller.registry.operator import METADATA_FOLDER, init_operator
from muster_controller.registry.tuf_repository import TufRepository, create_online_keys
from muster_shared import ids
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

DEFAULT_OPERATOR = Path("muster-operator")


@dataclass(frozen=True)
class InitDone:
    operator: str
    models: list[str]
    root: str
    controller_data: str | None


def init(
    folder: Annotated[Path, typer.Argument(help="The operator's folder; it must not be one yet.")] = DEFAULT_OPERATOR,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help="A model to delegate; repeat it.")] = None,
    controller_data: Annotated[
        Path | None, typer.Option(help="Data folder of a controller on this machine: it is initialised too.")
    ] = None,
    online_keys: Annotated[
        Path | None, typer.Option(help="File with the public online keys of a controller elsewhere.")
    ] = None,
    mixer: Annotated[
        list[Path] | None, typer.Option(help="A mixer's mixer.json: devices seal their metrics to it; repeat it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make the offline keys (2 of 3 each for root, targets and every model) and sign the first metadata.

    A controller can then publish only what two release key holders of a model have signed.
    """
    if (controller_data is None) == (online_keys is None):
        fail("give either --controller-data (a controller here) or --online-keys (a controller elsewhere)")
    now = datetime.now(UTC)
    try:
        names = [ModelName(ids.name(name, "model")) for name in model or []]
        mixers = read_mixers(mixer)
        online = _online(controller_data, online_keys)
        offline = init_operator(folder, names, online, now, mixers=mixers)
        if controller_data is not None:
            TufRepository(controller_data).accept_offline(offline.root, offline.targets, offline.keys, now)
    except (MusterError, OSError) as error:
        fail(error)
    root = folder / METADATA_FOLDER / "1.root.json"
    data = str(controller_data) if controller_data is not None else None

    def human(console: Console) -> None:
        console.print(f"Operator folder {folder}: keys and metadata for {', '.join(names) or 'no model yet'}.")
        console.print("Give each .pem in its keys folder to its holder; a model needs two of its three.")
        console.print(f"Devices are provisioned with {root}.")
        for each in mixers:
            console.print(f"Devices seal their metrics to mixer key {each}.", highlight=False)
        if data is None:
            console.print("Give the metadata folder to the controller.")

    emit(InitDone(str(folder), list(names), str(root), data), as_json, human)


def _online(controller_data: Path | None, online_keys: Path | None) -> OnlinePublicKeys:
    if controller_data is not None:
        return create_online_keys(controller_data)
    if online_keys is None:
        raise AssertionError("one of the two is given")
    return parse_online_keys(online_keys.read_bytes())
