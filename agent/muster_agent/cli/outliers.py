"""`muster-agent outliers`: the ring of odd inputs, for the person on site who has the private key.

    keygen   makes the key pair      list   what is in the ring      export   opens it, each entry one .npz

The agent itself has only the public key and can read none of it. The private key does not belong on the device.
"""

import argparse
import base64
import json
import os
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from muster_agent.cli.exits import FAILED, USAGE, CommandFailed
from muster_agent.metrics.outliers import FOLDER, Outlier, OutlierUnreadable, entries, open_entry

KEY_BYTES_MAX = 16 * 1024


def outliers(options: argparse.Namespace) -> None:
    match options.act:
        case "keygen":
            _keygen(options.key)
        case "list":
            _list(options)
        case "export":
            _export(options)


def _keygen(path: Path) -> None:
    private = X25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise CommandFailed(USAGE, f"{path} cannot be made: {error.strerror}; name a new file") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    recipient = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    print("[metrics]")
    print(f'outliers = {{count = 64, recipient = "{recipient}"}}')


def _list(options: argparse.Namespace) -> None:
    rows = []
    private = None if options.key is None else _key(options.key)
    for path in sorted(entries(_folder(options.config))):
        kept = path.stat()
        row: dict[str, object] = {"entry": path.stem, "at": kept.st_mtime, "bytes": kept.st_size}
        if private is not None:
            opened = _opened(path, private)
            row |= {"at": opened.at, "model": opened.model, "version": opened.version, "reason": opened.reason}
        rows.append(row)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for row in rows:
        more = "  ".join(str(row[name]) for name in ("model", "version", "reason") if name in row)
        at = datetime.fromtimestamp(float(str(row["at"])), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        print(f"{row['entry']}  {at}  {row['bytes']} bytes  {more}".rstrip())
    if not rows:
        print("the ring is empty")


def _export(options: argparse.Namespace) -> None:
    if options.key is None:
        raise CommandFailed(USAGE, "export needs --key, the file that `muster-agent outliers keygen` made")
    private, written = _key(options.key), 0
    try:
        options.to.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in sorted(entries(_folder(options.config))):
            opened = _opened(path, private)
            name = f"{path.stem}-{opened.model}-{opened.version}-{opened.reason}.npz".replace("/", "_")
            arrays = {f"input.{input_name}": array for input_name, array in opened.arrays().items()}
            with (options.to / name).open("wb") as file:
                np.savez(file, at=np.float64(opened.at), **arrays)  # type: ignore[arg-type]  # Names are arrays' only.
            written += 1
    except OSError as error:
        raise CommandFailed(FAILED, f"{options.to} cannot be written: {error.strerror}") from error
    except OutlierUnreadable as error:
        raise CommandFailed(FAILED, str(error)) from error
    print(f"{written} inputs are in {options.to}, in the clear: keep them accordingly")


def _opened(path: Path, private: X25519PrivateKey) -> Outlier:
    try:
        return open_entry(path.read_bytes(), private)
    except OutlierUnreadable as error:
        raise CommandFailed(FAILED, f"{path}: {error}") from error
    except OSError as error:
        raise CommandFailed(FAILED, f"{path} cannot be read: {error.strerror}") from error


def _key(path: Path) -> X25519PrivateKey:
    try:
        with path.open("rb") as file:
            key = serialization.load_pem_private_key(file.read(KEY_BYTES_MAX), password=None)
    except OSError as error:
        raise CommandFailed(USAGE, f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise CommandFailed(USAGE, f"{path} is no private key as `muster-agent outliers keygen` makes it") from error
    if not isinstance(key, X25519PrivateKey):
        raise CommandFailed(USAGE, f"{path} is a key of another kind; the ring needs X25519")
    return key


def _folder(config_path: Path) -> Path:
    from muster_agent.config import read_config
    from muster_agent.errors import ConfigInvalid

    try:
        return read_config(config_path, os.environ).data_dir / FOLDER
    except ConfigInvalid as error:
        raise CommandFailed(USAGE, str(error)) from error
