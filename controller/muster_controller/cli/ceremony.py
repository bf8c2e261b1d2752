"""`muster key ceremony`: several people, each with a key of his own on a machine of his own, change what is trusted.

One of them begins a ceremony file; it goes from one to the next, by stick or by mail, and back. What each step decides
is `registry.ceremony`'s; here people are asked and told. No command here talks to a controller.
"""

import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.mixer_cards import read_mixers
from muster_controller.cli.output import emit, fail
from muster_controller.config import DATA
from muster_controller.registry import ceremony as steps
from muster_controller.registry import ceremony_begin, durable
from muster_controller.registry.ceremony import Need, Stage
from muster_controller.registry.ceremony_begin import Rotation
from muster_controller.registry.ceremony_file import (
    FILE_BYTES_MAX,
    Ceremony,
    awaited,
    call,
    encode_ceremony,
    parse_ceremony,
)
from muster_controller.registry.ceremony_losses import Standing, assess
from muster_controller.registry.ceremony_words import digest, explain, joined_digest, plan
from muster_controller.registry.errors import CeremonyRefused
from muster_controller.registry.keys import (
    PASSPHRASE_VARIABLE,
    Passphrase,
    encode_online_keys,
    parse_online_keys,
    passphrase_from_environment,
)
from muster_controller.registry.operator import KEYS_FOLDER
from muster_controller.registry.tuf_repository import create_next_online_keys
from muster_shared import ids
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

DEFAULT_OPERATOR = Path("muster-operator")

app = typer.Typer(
    help="Make, change and use keys that several people hold. A ceremony file goes from one to the next.",
    no_args_is_help=True,
)
begin = typer.Typer(help="Begin a ceremony: say what is wanted. No key is needed for it.", no_args_is_help=True)
app.add_typer(begin, name="begin")

File = Annotated[Path, typer.Argument(help="The ceremony file.")]
NewFile = Annotated[Path, typer.Argument(help="The ceremony file to make.")]
Operator = Annotated[Path, typer.Option("--operator", "-o", help="A folder with the metadata in force.")]
Folder = Annotated[Path, typer.Option("--folder", "-f", help="The holder's own folder: keys/ and metadata/.")]
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
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]


@dataclass(frozen=True)
class View:
    """A ceremony for programs."""

    file: str
    purpose: str
    stage: str
    awaited: list[str]
    joined: list[str]
    joined_digest: str
    digest: str | None
    changes: dict[str, list[str]]
    needs: list[Need]
    done: list[str]
    """Names of keys that this step made or signed with."""


@dataclass(frozen=True)
class Finished:
    operator: str
    digest: str
    written: list[str]


@dataclass(frozen=True)
class OnlineKeysMade:
    file: str
    snapshot: str
    timestamp: str
    assignment: str


# -- begin ------------------------------------------------------------------------------------------------------------


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
        return ceremony_begin.begin_create(_identity(), key or [], _thresholds(threshold), online, now, mixers)

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
        return ceremony_begin.begin_rotate(_identity(), operator, rotation, given, now)

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
        return ceremony_begin.begin_release(_identity(), operator, bundle, raw, now)

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
        return ceremony_begin.begin_revoke(_identity(), operator, name, version, raw, now)

    _begin(file, make, dry_run, as_json)


# -- the steps --------------------------------------------------------------------------------------------------------


@app.command()
def join(
    file: File,
    holder: Annotated[str, typer.Option("--holder", help="Who you are: the end of your keys' names, such as anna.")],
    folder: Folder = DEFAULT_OPERATOR,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Make your keys on your machine, and put their public halves into the file."""
    try:
        found = _read(file)
        if dry_run:
            steps.require_known(found, folder)
            names = [name for name in awaited(found) if name.endswith(f"-{holder}")]
            _show(found, file, as_json, names, f"Would make {', '.join(names) or 'nothing'} in {folder / KEYS_FOLDER}.")
            return
        found, made = steps.join(found, folder, holder, _now(), passphrase=_passphrase(new=True))
        durable.write(file, encode_ceremony(found))
    except (MusterError, OSError) as error:
        fail(error)
    names = [key.name for key in made]
    where = f"{', '.join(names)}: the private halves are in {folder / KEYS_FOLDER} and nowhere else. Guard them."
    _show(found, file, as_json, names, where)


@app.command()
def sign(
    file: File, folder: Folder = DEFAULT_OPERATOR, yes: Yes = False, dry_run: DryRun = False, as_json: AsJson = False
) -> None:
    """Read what you sign, compare the digest aloud, and sign it with the keys in your folder."""
    try:
        found = _read(file)
        steps.require_known(found, folder)
        words = explain(found)
        keys = steps.can_sign(found, folder, _passphrase(new=False))
        if not as_json:
            _say_changes(Console(soft_wrap=True, highlight=False), found, words)
        names = [key.name for key in keys]
        if dry_run:
            _show(
                found, file, as_json, names, f"Would sign with {', '.join(names) or 'nothing: no key here is asked'}."
            )
            return
        if names and not yes:
            if not sys.stdin.isatty():
                raise CeremonyRefused("nobody is here to be asked; read it with --dry-run and then say --yes")
            if not typer.confirm(f"Do all holders read this digest, and do you sign with {', '.join(names)}?"):
                fail("nothing is signed")
        found, done = steps.sign(found, folder, passphrase=_passphrase(new=False))
        durable.write(file, encode_ceremony(found))
    except (MusterError, OSError) as error:
        fail(error)
    _show(found, file, as_json, [key.name for key in done], f"Signed with {', '.join(key.name for key in done)}.")


@app.command()
def status(file: File, as_json: AsJson = False) -> None:
    """Show what the file wants, what is done, and who is next."""
    try:
        found = _read(file)
        words = explain(found)
    except (MusterError, OSError) as error:
        fail(error)
    if not as_json:
        _say_changes(Console(soft_wrap=True, highlight=False), found, words)
    _show(found, file, as_json, [], "")


@app.command()
def finish(file: File, operator: Operator = DEFAULT_OPERATOR, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Verify everything and write the metadata into a folder: the operator's, and every holder's own."""
    try:
        found = _read(file)
        explain(found)
        if dry_run:
            if steps.stage(found) is not Stage.SIGNED:
                raise CeremonyRefused("it is not signed yet; `muster key ceremony status` says who is next")
            steps.require_known(found, operator)
            _show(found, file, as_json, [], f"Would write the metadata into {operator}.")
            return
        written = steps.finish(found, operator, _now())
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        for path in written:
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        if not written:
            console.print(f"{operator} had it already.")
        console.print(_next_command(found, operator), highlight=False, soft_wrap=True)

    emit(Finished(str(operator), digest(found), [str(path) for path in written]), as_json, human)


@app.command("assess")
def assess_(
    operator: Operator = DEFAULT_OPERATOR,
    lost: Annotated[list[str] | None, typer.Option(help="A key that nobody has any more; repeat it.")] = None,
    stolen: Annotated[list[str] | None, typer.Option(help="A key that somebody else may have; repeat it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is still possible when keys are lost or stolen, and what to do. It changes nothing."""
    try:
        base = ceremony_begin.survey(_identity(), operator, {}, _now())
        held = ceremony_begin.key_roles(base)
        gone, taken = (
            {ceremony_begin.find_key(held, base.names, each) for each in said or ()} for said in (lost, stolen)
        )
        found = assess(base, gone, taken)
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        for each in found:
            left = each.keys - len(each.lost)
            console.print(f"{each.role}: {left} of {each.keys} keys left, {each.threshold} must sign.")
            if each.thief_can_sign:
                console.print("  Whoever stole keys can sign in its name.")
            if not each.can_sign:
                console.print("  Its holders can sign nothing any more.")
            for line in each.advice:
                console.print(f"  {line}", markup=False)
            if each.standing is Standing.SOUND:
                console.print("  Nothing to do.")

    emit(found, as_json, human)


@app.command("online-keys")
def online_keys(
    out: Annotated[Path, typer.Option("--out", help="Where the public halves go.")],
    data: Annotated[Path, typer.Option("--data", "-d", envvar="MUSTER_DATA", help="The controller's folder.")] = DATA,
    as_json: AsJson = False,
) -> None:
    """Make the controller's next keys, on its machine. It goes on with those it has until these are in force."""
    try:
        if not data.is_dir():
            raise CeremonyRefused(f"there is no controller in {data}; name its folder with --data")
        keys = create_next_online_keys(data)
        durable.write(out, encode_online_keys(keys))
    except (MusterError, OSError) as error:
        fail(error)
    made = OnlineKeysMade(str(out), keys.snapshot.keyid, keys.timestamp.keyid, keys.assignment.keyid)
    said = f"Next: `muster key ceremony begin rotate FILE --online-keys {out}`. The controller goes on meanwhile."
    emit(made, as_json, lambda console: console.print(said, highlight=False, soft_wrap=True))


# -- inside -----------------------------------------------------------------------------------------------------------


def _begin(file: Path, make: Callable[[datetime], Ceremony], dry_run: bool, as_json: bool) -> None:
    try:
        if file.exists():
            raise CeremonyRefused(f"{file} is there already; finish it, or choose another name")
        found = make(_now())
        words = explain(found)
        if not dry_run:
            durable.create(file, encode_ceremony(found))
    except (MusterError, OSError) as error:
        fail(error)
    if not as_json:
        _say_changes(Console(soft_wrap=True, highlight=False), found, words)
    _show(found, file, as_json, [], f"{'Would begin' if dry_run else 'Begun'}: {file}.")


def _show(ceremony: Ceremony, file: Path, as_json: bool, done: Sequence[str], said: str) -> None:
    """Print what the step did, and who is next."""
    stage, waits = steps.stage(ceremony), awaited(ceremony)
    view = View(
        file=str(file),
        purpose=ceremony.purpose.value,
        stage=stage.value,
        awaited=list(waits),
        joined=[each.name for each in ceremony.joined],
        joined_digest=joined_digest(ceremony),
        digest=digest(ceremony) if ceremony.parts else None,
        changes=explain(ceremony),
        needs=list(steps.needs(ceremony)),
        done=list(done),
    )

    def human(console: Console) -> None:
        console.soft_wrap = True
        if said:
            console.print(said, highlight=False, markup=False)
        if stage is Stage.JOINING:
            console.print(f"Keys so far, to compare aloud: {joined_digest(ceremony)}", highlight=False)
            console.print(
                f"Waits for {', '.join(waits)}: `muster key ceremony join {file} --holder NAME`.", highlight=False
            )
            return
        for need in view.needs:
            who = ", ".join(call(ceremony, keyid) for keyid in need.lack)
            have = f"{need.part} {need.version}: {len(need.have)} of {need.threshold} that {need.by} asks for"
            console.print(have if need.is_met else f"{have}; next may be {who}", highlight=False)
        if stage is Stage.SIGNED:
            console.print(
                f"All have signed. Next, in every folder: `muster key ceremony finish {file}`.", highlight=False
            )
        else:
            console.print(f"Next: `muster key ceremony sign {file}` on their machines.", highlight=False)

    emit(view, as_json, human)


def _say_changes(console: Console, ceremony: Ceremony, words: dict[str, list[str]]) -> None:
    if not words:
        for line in plan(ceremony):
            console.print(f"  {line}", markup=False)
        return
    for part, lines in words.items():
        console.print(part, style="bold")
        for line in lines:
            console.print(f"  {line}", markup=False)
    console.print(f"Digest, to compare aloud: {digest(ceremony)}")


def _next_command(ceremony: Ceremony, operator: Path) -> str:
    releases = [part for part in ceremony.parts if part not in ("root", "targets")]
    if releases and len(releases) == len(ceremony.parts) and not ceremony.changes:
        signed = " ".join(str(path) for path in sorted((operator / "metadata").glob(f"*.{releases[0]}.json"))[-1:])
        if ceremony.purpose.value == "release":
            return f"Next: `muster model publish BUNDLE --signed {signed}`."
        return f"Next: `muster model push-metadata {releases[0].removeprefix('release-')} --signed {signed}`."
    return f"Next: `muster trust push {operator}`."


def _read(file: Path) -> Ceremony:
    with file.open("rb") as stream:
        return parse_ceremony(stream.read(FILE_BYTES_MAX + 1))


def _passphrase(*, new: bool) -> Passphrase:
    """Ask the environment, then whoever sits there; nobody there: keys are not encrypted."""
    asked: dict[Path, bytes | None] = {}

    def ask(path: Path) -> bytes | None:
        given = passphrase_from_environment(path)
        if given is not None or not sys.stdin.isatty():
            return given
        if path not in asked:
            question = f"Passphrase of {path.name} (empty: none; or set {PASSPHRASE_VARIABLE})"
            confirm = new and not path.is_file()
            text = typer.prompt(question, default="", hide_input=True, show_default=False, confirmation_prompt=confirm)
            asked[path] = text.encode() or None
        return asked[path]

    return ask


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


def _identity() -> str:
    return secrets.token_hex(8)


def _now() -> datetime:
    return datetime.now(UTC)
