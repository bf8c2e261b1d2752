"""`muster key ceremony begin`: what is wanted, put into a new ceremony file. No key is needed for it."""

import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.ceremony_telling import say_changes, show
from muster_controller.cli.mixer_cards import read_mixers
from muster_controller.cli.output import fail
from muster_controller.registry import ceremony_begin, durable
from muster_controller.registry.ceremony_begin import Rotation
from muster_controller.registry.ceremony_file import Ceremony, encode_ceremony
from muster_controller.registry.ceremony_words import explain
from muster_controller.registry.errors import CeremonyRefused
from muster_controller.registry.keys import parse_online_keys
from muster_shared import ids
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

DEFAULT_OPERATOR = Path("muster-operator")

begin = typer.Typer(help="Begin a ceremony: say what is wanted. No key is needed for it.", no_args_is_help=True)

NewFile = Annotated[Path, typer.Argument(help="The ceremony file to make.")]
Operator = Annotated[Path, typer.Option("--operator", "-o", help="A folder with the metadata in force.")]
Keys = Annotated[
    list[str] | None,
    typer.Option("--key", "-k", help="A key that is to be made: root-anna, release-digits-ben; repeat."),
]
Thresholds = Annotated[
    list[str] | None, typer.Option("--threshold", "-t", help="How many of a role must sign: root=2; repeat.")
]
OnlineKeys = Annotated[
    Path | None, typer.Option(help="The controller's next public keys, of `muster key ceremony online-keys`.")
]
Mixers = Annotated[
    list[Path] | None, typer.Option("--mixer", help="A mixer's mixer.json: devices seal their metrics to it; repeat.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would happen and write nothing.")]


@begin.command()
def create(
    file: NewFile,
    online_keys: Annotated[Path, typer.Option(help="The controller's public keys, of `muster trust online-keys`.")],
    key: Keys = None,
    threshold: Thresholds = None,
    mixer: Mixers = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """The first keys of a fleet: root, targets, and the release keys of its models."""

    def make(now: datetime) -> Ceremony:
        online = parse_online_keys(online_keys.read_bytes())
        mixers = read_mixers(mixer)
        return ceremony_begin.begin_create(identity(), key or [], _thresholds(threshold), online, now, mixers)

    _begin(file, make, dry_run, as_json)


@begin.command()
def rotate(
    file: NewFile,
    operator: Operator = DEFAULT_OPERATOR,
    key: Keys = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", "-r", help="A key that goes: its name or the beginning of its id.")
    ] = None,
    threshold: Thresholds = None,
    renew: Annotated[
        list[str] | None, typer.Option(help="A role to sign anew before it runs out: root, targets, release-digits.")
    ] = None,
    online_keys: OnlineKeys = None,
    mixer: Mixers = None,
    remove_mixer: Annotated[
        list[str] | None, typer.Option(help="The id of a mixer key to which devices seal no more; repeat.")
    ] = None,
    current: Annotated[
        list[str] | None,
        typer.Option(help="release-digits=FILE: a release role as the controller has it, if the folder is behind."),
    ] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Other keys, other thresholds, another model, or later dates. Whatever is not named stays."""

    def make(now: datetime) -> Ceremony:
        online = parse_online_keys(online_keys.read_bytes()) if online_keys is not None else None
        rotation = Rotation(
            tuple(key or ()),
            tuple(remove or ()),
            _thresholds(threshold),
            tuple(renew or ()),
            online,
            read_mixers(mixer),
            tuple(remove_mixer or ()),
        )
        given = {role: Path(path).read_bytes() for role, path in _pairs(current, "release-digits=FILE")}
        return ceremony_begin.begin_rotate(identity(), operator, rotation, given, now)

    _begin(file, make, dry_run, as_json)


@begin.command()
def release(
    file: NewFile,
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    operator: Operator = DEFAULT_OPERATOR,
    current: Annotated[Path | None, typer.Option(help="The role's metadata as the controller has it.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """The signing of a bundle by the holders of its model's release keys."""

    def make(now: datetime) -> Ceremony:
        raw = current.read_bytes() if current is not None else None
        return ceremony_begin.begin_release(identity(), operator, bundle, raw, now)

    _begin(file, make, dry_run, as_json)


@begin.command()
def revoke(
    file: NewFile,
    model: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[str, typer.Argument(help="The version that no device may run any more.")],
    operator: Operator = DEFAULT_OPERATOR,
    current: Annotated[Path | None, typer.Option(help="The role's metadata as the controller has it.")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """The revocation of a release by the holders of its model's release keys."""

    def make(now: datetime) -> Ceremony:
        raw = current.read_bytes() if current is not None else None
        name = ModelName(ids.name(model, "model"))
        return ceremony_begin.begin_revoke(identity(), operator, name, version, raw, now)

    _begin(file, make, dry_run, as_json)


# -- inside -----------------------------------------------------------------------------------------------------------


def _begin(file: Path, make: Callable[[datetime], Ceremony], dry_run: bool, as_json: bool) -> None:
    try:
        if file.exists():
            raise CeremonyRefused(f"{file} is there already; finish it, or choose another name")
        found = make(now())
        words = explain(found)
        if not dry_run:
            durable.create(file, encode_ceremony(found))
    except (MusterError, OSError) as error:
        fail(error)
    if not as_json:
        say_changes(Console(soft_wrap=True, highlight=False), found, words)
    show(found, file, as_json, [], f"{'Would begin' if dry_run else 'Begun'}: {file}.")


def _thresholds(given: Sequence[str] | None) -> dict[str, int]:
    try:
        return {role: int(number) for role, number in _pairs(given, "root=2")}
    except ValueError as error:
        raise CeremonyRefused("a threshold is a role and a number: root=2") from error


def _pairs(given: Sequence[str] | None, example: str) -> list[tuple[str, str]]:
    pairs = [each.partition("=") for each in given or ()]
    wrong = [name for name, equals, value in pairs if not (name and equals and value)]
    if wrong:
        raise CeremonyRefused(f"{wrong[0]!r} is not of the kind {example}")
    return [(name, value) for name, _, value in pairs]


def identity() -> str:
    return secrets.token_hex(8)


def now() -> datetime:
    return datetime.now(UTC)
