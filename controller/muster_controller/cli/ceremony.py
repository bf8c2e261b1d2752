"""`muster key ceremony`: several people, each with a key of his own on a machine of his own, change what is trusted.

One of them begins a ceremony file (`ceremony_beginning`); it goes from one to the next, by stick or by mail, and back.
What each step decides is `registry.ceremony`'s; here people are asked. No command here talks to a controller.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli.arguments import AsJson
from muster_controller.cli.ceremony_beginning import DEFAULT_OPERATOR, DryRun, Operator, begin, identity, now
from muster_controller.cli.ceremony_telling import next_command, say_changes, show
from muster_controller.cli.output import emit, fail
from muster_controller.config import DATA
from muster_controller.registry import ceremony as steps
from muster_controller.registry import ceremony_begin, durable
from muster_controller.registry.ceremony import Stage
from muster_controller.registry.ceremony_file import FILE_BYTES_MAX, Ceremony, awaited, encode_ceremony, parse_ceremony
from muster_controller.registry.ceremony_losses import Standing, assess
from muster_controller.registry.ceremony_words import digest, explain
from muster_controller.registry.errors import CeremonyRefused
from muster_controller.registry.keys import (
    PASSPHRASE_VARIABLE,
    Passphrase,
    encode_online_keys,
    passphrase_from_environment,
)
from muster_controller.registry.operator import KEYS_FOLDER
from muster_controller.registry.tuf_repository import create_next_online_keys
from muster_shared.errors import MusterError

app = typer.Typer(
    help="Make, change and use keys that several people hold. A ceremony file goes from one to the next.",
    no_args_is_help=True,
)
app.add_typer(begin, name="begin")

File = Annotated[Path, typer.Argument(help="The ceremony file.")]
Folder = Annotated[Path, typer.Option("--folder", "-f", help="The holder's own folder: keys/ and metadata/.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")]


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
            show(found, file, as_json, names, f"Would make {', '.join(names) or 'nothing'} in {folder / KEYS_FOLDER}.")
            return
        found, made = steps.join(found, folder, holder, now(), passphrase=_passphrase(new=True))
        durable.write(file, encode_ceremony(found))
    except (MusterError, OSError) as error:
        fail(error)
    names = [key.name for key in made]
    where = f"{', '.join(names)}: the private halves are in {folder / KEYS_FOLDER} and nowhere else. Guard them."
    show(found, file, as_json, names, where)


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
            say_changes(Console(soft_wrap=True, highlight=False), found, words)
        names = [key.name for key in keys]
        if dry_run:
            show(found, file, as_json, names, f"Would sign with {', '.join(names) or 'nothing: no key here is asked'}.")
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
    show(found, file, as_json, [key.name for key in done], f"Signed with {', '.join(key.name for key in done)}.")


@app.command()
def status(file: File, as_json: AsJson = False) -> None:
    """Show what the file wants, what is done, and who is next."""
    try:
        found = _read(file)
        words = explain(found)
    except (MusterError, OSError) as error:
        fail(error)
    if not as_json:
        say_changes(Console(soft_wrap=True, highlight=False), found, words)
    show(found, file, as_json, [], "")


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
            show(found, file, as_json, [], f"Would write the metadata into {operator}.")
            return
        written = steps.finish(found, operator, now())
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        for path in written:
            console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        if not written:
            console.print(f"{operator} had it already.")
        console.print(next_command(found, operator), highlight=False, soft_wrap=True)

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
        base = ceremony_begin.survey(identity(), operator, {}, now())
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
