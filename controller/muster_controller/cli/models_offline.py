"""The offline half of `muster model`: build a bundle, sign it, let others sign it, add a model. Nothing is sent.

`register` puts the commands on the `model` app, whose online half lives elsewhere.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from muster_controller.cli.init import DEFAULT_OPERATOR
from muster_controller.cli.output import emit, fail
from muster_controller.registry import durable
from muster_controller.registry.bundles import build_bundle
from muster_controller.registry.metadata import release_role
from muster_controller.registry.operator import (
    KEYS_FOLDER,
    METADATA_FOLDER,
    SignedRelease,
    add_model,
    co_sign,
    revoke_release,
    sign_release,
)
from muster_controller.registry.tuf_repository import TufRepository
from muster_shared import ids
from muster_shared.errors import MusterError
from muster_shared.ids import ModelName

Operator = Annotated[Path, typer.Option("--operator", "-o", help="The operator's folder.")]
WithKey = Annotated[
    list[str] | None,
    typer.Option("--with-key", help="Sign with this key only, such as release-digits-1; repeat it. Default: all here."),
]
Current = Annotated[
    Path | None, typer.Option(help="The role's metadata as the controller has it. Default: what was signed here last.")
]
Partial = Annotated[bool, typer.Option("--partial", help="Accept too few signatures: others add theirs.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True)
class BundleBuilt:
    folder: str
    model: str
    version: str
    release: int
    files: int
    bytes: int


@dataclass(frozen=True)
class MetadataSigned:
    role: str
    file: str
    signatures: int
    needed: int


@dataclass(frozen=True)
class ModelAdded:
    model: str
    role: str
    keys: str
    metadata: str


def register(app: typer.Typer) -> None:
    """Add the offline commands to `app`."""
    for command in (build, sign, cosign, revoke, add):
        app.command()(command)


def build(
    spec: Annotated[Path, typer.Argument(help="The TOML spec, such as muster-model.toml.")],
    out: Annotated[Path, typer.Argument(help="The bundle folder to make.")],
    as_json: AsJson = False,
) -> None:
    """Build a bundle folder from a TOML spec."""
    try:
        manifest = build_bundle(spec, out)
    except (MusterError, OSError) as error:
        fail(error)
    size = sum(file.length for file in manifest.files)

    def human(console: Console) -> None:
        console.print(f"{out}: {manifest.model} {manifest.version}, {len(manifest.files)} files, {size} bytes.")
        console.print("Next: `muster model sign`.")

    value = BundleBuilt(str(out), manifest.model, manifest.version, manifest.release, len(manifest.files), size)
    emit(value, as_json, human)


def sign(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder.")],
    out: Annotated[Path, typer.Option("--out", help="Where the signed metadata goes.")],
    operator: Operator = DEFAULT_OPERATOR,
    current: Current = None,
    with_key: WithKey = None,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Sign a bundle as the next release of its model."""
    try:
        base = current.read_bytes() if current is not None else None
        signed = sign_release(
            operator, bundle, base, datetime.now(UTC), with_keys=tuple(with_key or ()), partial=partial
        )
        durable.write(out, signed.metadata)
    except (MusterError, OSError) as error:
        fail(error)
    _emit_signed(signed, out, as_json)


def cosign(
    file: Annotated[Path, typer.Argument(help="Metadata that another holder began; it is rewritten.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose release it is.")],
    operator: Operator = DEFAULT_OPERATOR,
    with_key: WithKey = None,
    as_json: AsJson = False,
) -> None:
    """Add this holder's signature to metadata that another holder began."""
    try:
        role = release_role(ModelName(model))
        signed = co_sign(operator, file.read_bytes(), role, with_keys=tuple(with_key or ()))
        durable.write(file, signed.metadata)
    except (MusterError, OSError) as error:
        fail(error)
    _emit_signed(signed, file, as_json)


def revoke(
    model: Annotated[str, typer.Argument(help="The model.")],
    version: Annotated[str, typer.Argument(help="The version that no device may run any more.")],
    out: Annotated[Path, typer.Option("--out", help="Where the signed metadata goes.")],
    operator: Operator = DEFAULT_OPERATOR,
    current: Current = None,
    with_key: WithKey = None,
    partial: Partial = False,
    as_json: AsJson = False,
) -> None:
    """Sign metadata without one release."""
    try:
        base = current.read_bytes() if current is not None else None
        signed = revoke_release(
            operator,
            ModelName(ids.name(model, "model")),
            version,
            base,
            datetime.now(UTC),
            with_keys=tuple(with_key or ()),
            partial=partial,
        )
        durable.write(out, signed.metadata)
    except (MusterError, OSError) as error:
        fail(error)
    _emit_signed(signed, out, as_json)


def add(
    model: Annotated[str, typer.Argument(help="The new model's name.")],
    operator: Operator = DEFAULT_OPERATOR,
    controller_data: Annotated[
        Path | None, typer.Option(help="Data folder of a controller on this machine (not running): it learns it too.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a new model release keys and a delegation, in the next targets metadata."""
    now = datetime.now(UTC)
    try:
        name = ModelName(ids.name(model, "model"))
        offline = add_model(operator, name, now)
        if controller_data is not None:
            TufRepository(controller_data).accept_offline(offline.root, offline.targets, offline.keys, now)
    except (MusterError, OSError) as error:
        fail(error)
    value = ModelAdded(name, release_role(name), str(operator / KEYS_FOLDER), str(operator / METADATA_FOLDER))

    def human(console: Console) -> None:
        console.print(f"{name} may be signed by two of the three {value.role} keys in {value.keys}.")
        if controller_data is None:
            console.print(f"Give {value.metadata} to the controller.")

    emit(value, as_json, human)


def _emit_signed(signed: SignedRelease, out: Path, as_json: bool) -> None:
    def human(console: Console) -> None:
        console.print(f"{out}: {signed.role}, signed by {signed.have} of {signed.need} needed keys.")
        console.print("Next: `muster model publish`." if signed.is_complete else "Next: `muster model cosign`.")

    emit(MetadataSigned(signed.role, str(out), signed.have, signed.need), as_json, human)
