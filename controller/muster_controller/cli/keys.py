"""`muster key`: signing keys as files. Offline; nothing is sent anywhere."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from muster_controller.cli import ceremony
from muster_controller.cli.output import emit, fail
from muster_controller.registry.keys import (
    PASSPHRASE_VARIABLE,
    KeyFile,
    create_key,
    list_keys,
    load_key,
    passphrase_from_environment,
)
from muster_shared.errors import MusterError

app = typer.Typer(
    help=f"Signing keys (ed25519). {PASSPHRASE_VARIABLE} encrypts new private keys and opens encrypted ones.",
    no_args_is_help=True,
)
app.add_typer(ceremony.app, name="ceremony")

Folder = Annotated[Path, typer.Option("--folder", "-f", help="Where the keys are.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_FOLDER = Path("muster-operator/keys")


@dataclass(frozen=True)
class KeyLine:
    name: str
    role: str
    model: str | None
    keyid: str
    public: str
    private_here: bool


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="root-<holder>, targets-<holder> or release-<model>-<holder>.")],
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Make a key pair: NAME.pem for its holder alone, NAME.pub for everybody."""
    try:
        key = create_key(folder, name, passphrase_from_environment(folder / name))
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        console.print(f"{key.path} made; keep it offline. Key id {key.keyid}", soft_wrap=True, highlight=False)

    emit(_line(key), as_json, human)


@app.command("list")
def list_(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """List the keys of a folder and whether their private half is there."""
    try:
        lines = [_line(key) for key in list_keys(folder)]
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        table = Table("name", "role", "model", "key id", "private half")
        for line in lines:
            here = "here" if line.private_here else "elsewhere"
            table.add_row(line.name, line.role, line.model or "", line.keyid[:16], here)
        console.print(table if lines else f"no keys in {folder}; make one with `muster key create`")

    emit(lines, as_json, human)


@app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A .pem or .pub file.")],
    as_json: AsJson = False,
) -> None:
    """Show the public half of one key."""
    try:
        line = _line(load_key(path))
    except (MusterError, OSError) as error:
        fail(error)

    def human(console: Console) -> None:
        console.print(f"{line.name}: ed25519 {line.public}\nkey id {line.keyid}", soft_wrap=True, highlight=False)

    emit(line, as_json, human)


def _line(key: KeyFile) -> KeyLine:
    public = str(key.public.keyval["public"])
    return KeyLine(key.name, key.role.value, key.model, key.keyid, public, key.is_private_here)
