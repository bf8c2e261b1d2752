"""`muster mixer`: whose keys a mixer has, who admits it, and whose offline keys let devices seal to it.

    create ─ on its machine ─▶ mixer.json ─┬─ admit ─ an admin ─────────▶ admitted.json, back to its machine
                                           └─ sign ─ the offline keys ──▶ `muster trust push`

`attach` puts these commands into the group; running a mixer is `cli.mixer`'s.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli.arguments import AsJson, Reason
from muster_controller.cli.client import EXIT_CODES, connect, refuse
from muster_controller.cli.init import DEFAULT_OPERATOR
from muster_controller.cli.mixer_cards import read_card, read_mixers
from muster_controller.cli.output import emit, fail
from muster_controller.cli.times import stamp
from muster_controller.mixer import certificate
from muster_controller.mixer.folder import ADMITTED, MixerFolder
from muster_controller.mixer_card import CARD
from muster_controller.registry import durable
from muster_controller.registry.operator import METADATA_FOLDER, change_mixers
from muster_shared.enrolment import Admitted
from muster_shared.errors import MusterError

Folder = Annotated[Path, typer.Argument(help="The mixer's folder.")]
Card = Annotated[Path, typer.Argument(help="The mixer's mixer.json, or the folder that it is in.")]
Name = Annotated[str, typer.Argument(help="The mixer, by name.")]


def attach(app: typer.Typer) -> None:
    """Add the commands of this file to the group `muster mixer`."""
    for offline in (create, rotate, retire, sign):
        app.command()(offline)
    for online in (admit, renew, revoke, forget):
        app.command(epilog=EXIT_CODES)(online)
    app.command("list", epilog=EXIT_CODES)(list_)


# -- on the mixer's machine -------------------------------------------------------------------------------------------


def create(
    folder: Folder,
    name: Annotated[str, typer.Option("--name", help="What it is called, such as mixer-1.")],
    seal_key: Annotated[
        Path | None,
        typer.Option(help="A seal/ID.key of another mixer: mixers that share the cohorts share the key."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a mixer's keys, on its own machine. They never leave it."""
    try:
        card = MixerFolder.create(folder, name, seal_key=seal_key).card()
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        console.print(f"Mixer {name}: devices will seal to key {card.key_id}.", highlight=False)
        console.print(f"Its public halves are in {folder / CARD}: take it", highlight=False, soft_wrap=True)
        console.print(f"  to an admin of the controller, who says `muster mixer admit {CARD}`,", highlight=False)
        console.print(f"  and to the holders of the targets keys: `muster mixer sign {CARD}`.", highlight=False)

    emit({"folder": str(folder), "mixer": name, "key": card.key_id, "card": str(folder / CARD)}, as_json, human)


def rotate(
    folder: Folder,
    seal_key: Annotated[
        Path | None, typer.Option(help="The new seal/ID.key of another mixer, where mixers share the key.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make another key for sealing. The mixer opens both until the old one is taken away (`retire`)."""
    try:
        before, card = MixerFolder(folder).card(), MixerFolder(folder).rotate(seal_key=seal_key)
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        console.print(f"The newest key is {card.key_id}. Restart the mixer first, so that it opens both. Then:")
        console.print(f"  the targets keys: `muster mixer sign {CARD} --remove {before.key_id}`, `muster trust push`;")
        console.print(f"  when the last window of before is in: `muster mixer retire {folder} {before.key_id}`.")

    emit({"mixer": card.mixer, "key": card.key_id, "before": before.key_id}, as_json, human)


def retire(
    folder: Folder,
    key: Annotated[str, typer.Argument(help="The id of an old key.")],
    as_json: AsJson = False,
) -> None:
    """Destroy an old key for sealing: what was sealed to it, nobody can ever open again."""
    try:
        MixerFolder(folder).retire(key)
    except (MusterError, OSError) as error:
        fail(error)
    emit({"key": key}, as_json, lambda console: console.print(f"{key} is gone.", highlight=False))


def renew(folder: Folder, as_json: AsJson = False) -> None:
    """Ask for a certificate now. `muster mixer run` does it by itself, from half of a certificate's life on."""
    try:
        connection = certificate.renew(MixerFolder(folder), time.time)
    except MusterError as error:
        refuse(error)
    said = f"A certificate until {stamp(connection.expires_at)}; the broker is {connection.link.broker.host}."
    emit(
        {"expires_at": connection.expires_at, "renew_at": connection.renew_at, "fleet": connection.fleet},
        as_json,
        lambda console: console.print(said, highlight=False),
    )


# -- at the controller ------------------------------------------------------------------------------------------------


def admit(
    context: typer.Context,
    card: Card,
    out: Annotated[Path | None, typer.Option("--out", help=f"Where {ADMITTED} goes; beside the card without.")] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Let a mixer have certificates of the fleet. Again does no harm, and tells its newest key."""
    try:
        shown = read_card(card)
        body = {"mixer": shown.mixer, "identity": shown.identity, "public_key": shown.public_key.hex()}
        with connect(context) as api:
            found = api.post("/mixers", body | {"reason": reason})
        admitted = msgspec.convert({**found, "mixer": shown.mixer}, Admitted)
        file = out or (card / ADMITTED if card.is_dir() else card.parent / ADMITTED)
        durable.write(file, msgspec.json.format(msgspec.json.encode(admitted), indent=1) + b"\n")
    except (MusterError, OSError) as error:
        refuse(error)

    def human(console: Console) -> None:
        made = found["made"]
        console.print(f"{shown.mixer} (key {made['fingerprint'][:16]}) is admitted.", highlight=False)
        if file.parent != (card if card.is_dir() else card.parent) or not (file.parent / "identity.key").exists():
            console.print(f"Put {file} into its folder, beside its {CARD}.", highlight=False, soft_wrap=True)
        if not made["is_signed"]:
            console.print(
                f"Devices do not seal to its key {made['key']} yet: `muster mixer sign {CARD}` with the targets keys, "
                "then `muster trust push`.",
                highlight=False,
                soft_wrap=True,
            )

    emit({**found, "file": str(file)}, as_json, human)


def list_(context: typer.Context, as_json: AsJson = False) -> None:
    """List mixers, and the keys to which devices seal."""
    try:
        with connect(context) as api:
            found = api.get("/mixers")
    except MusterError as error:
        refuse(error)

    def human(console: Console) -> None:
        table = Table("mixer", "state", "identity key", "seals", "devices seal to it", "certificate until", "heard")
        for each in found["mixers"]:
            until = stamp(each["expires_at"]) if each["expires_at"] else "none yet"
            heard = stamp(each["seen_at"]) if each["seen_at"] else "never"
            signed = "yes" if each["is_signed"] else "not yet"
            table.add_row(each["mixer"], each["state"], each["fingerprint"][:16], each["key"], signed, until, heard)
        console.print(table if found["mixers"] else "No mixer; `muster mixer create` makes one.")
        others = sorted(set(found["keys"]) - {each["key"] for each in found["mixers"]})
        if others:
            console.print(f"Devices also seal to {', '.join(others)}.", highlight=False)

    emit(found, as_json, human)


def revoke(context: typer.Context, name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Take a mixer's identity for good: its connection is cut, and its identity key is worth nothing any more."""
    _order(context, name, "revoke", reason, as_json)


def forget(context: typer.Context, name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Free a mixer's name, so that another folder can have it."""
    _order(context, name, "forget", reason, as_json)


# -- with the offline keys --------------------------------------------------------------------------------------------


def sign(
    cards: Annotated[list[Path] | None, typer.Argument(help="mixer.json files: devices are to seal to these.")] = None,
    operator: Annotated[
        Path, typer.Option("--operator", "-o", help="The operator's folder, with enough targets keys in it.")
    ] = DEFAULT_OPERATOR,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="The id of a key to which devices seal no more; repeat it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let devices seal their metrics to mixers. The other mixer keys stay. Offline; nothing is sent anywhere.

    Where the keys are with several people: `muster key ceremony begin rotate FILE --mixer mixer.json`.
    """
    try:
        added = read_mixers(cards)
        offline = change_mixers(operator, added, remove or [], datetime.now(UTC))
    except (MusterError, OSError) as error:
        fail(error)
    version = msgspec.json.decode(offline.targets, type=_Document).signed.version

    def human(console: Console) -> None:
        for each in added:
            console.print(f"Devices seal their metrics to mixer key {each}.", highlight=False)
        for each in remove or ():
            console.print(f"Devices seal nothing to mixer key {each} any more.", highlight=False)
        console.print(f"Signed: {operator / METADATA_FOLDER}, targets {version}.", highlight=False, soft_wrap=True)
        console.print(f"Next: `muster trust push {operator}`.", highlight=False, soft_wrap=True)

    emit(
        {"operator": str(operator), "targets": version, "added": sorted(added), "removed": remove or []}, as_json, human
    )


# -- inside -----------------------------------------------------------------------------------------------------------


class _Signed(msgspec.Struct):
    version: int


class _Document(msgspec.Struct):
    signed: _Signed


def _order(context: typer.Context, name: str, order: str, reason: str, as_json: bool) -> None:
    try:
        with connect(context) as api:
            found = api.post(f"/mixers/{name}/{order}", {"reason": reason})
    except MusterError as error:
        refuse(error)
    emit(found, as_json, _said(name, order, found["mixer"], found["in_effect"]))


def _said(name: str, order: str, mixer: Mapping[str, object], in_effect: bool) -> Callable[[Console], None]:
    def human(console: Console) -> None:
        state = "forgotten" if order == "forget" else str(mixer["state"])
        later = "" if in_effect else " The broker has not taken it yet; it is told until it does."
        console.print(f"{name} (key {str(mixer['fingerprint'])[:16]}) is {state}.{later}", highlight=False)
        if mixer["is_signed"]:
            console.print(
                f"Devices still seal to its key {mixer['key']}, which nobody opens now: `muster mixer sign --remove "
                f"{mixer['key']}` with the targets keys, then `muster trust push`.",
                highlight=False,
                soft_wrap=True,
            )

    return human
