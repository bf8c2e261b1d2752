"""Where the identity key is, as configuration says it: `file`, or a PKCS#11 URI (RFC 7512). Parsed, not opened.

pkcs11:token=fleet;object=muster-identity?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/etc/muster-agent/pin
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from muster_agent.errors import KeyUnusable

FILE = "file"
SCHEME = "pkcs11:"
OBJECT = "muster-identity"
"""The label of the key pair where the URI names neither object nor id."""
_EXAMPLE = "pkcs11:token=LABEL;object=muster-identity?module-path=/usr/lib/MODULE.so&pin-source=file:/PATH"
_PATH = ("token", "serial", "object", "id", "type")
_QUERY = ("module-path", "pin-source")


@dataclass(frozen=True)
class Pkcs11Uri:
    """A key pair on a token."""

    module: Path
    token: str | None
    """Label of the token; None: the only one there is, or `serial` says which."""
    serial: str | None
    label: str
    """Of the key pair."""
    id: bytes | None
    pin_file: Path | None
    """None: the token asks for none."""


def parse_key(text: str) -> Pkcs11Uri | None:
    """Return what `text` names; None is the file in the identity's own folder.

    Raises:
        KeyUnusable: it is neither `file` nor a PKCS#11 URI with all that is needed.
    """
    if text == FILE:
        return None
    if not text.startswith(SCHEME):
        raise KeyUnusable(f'{text[:40]!r} is no identity key: write "file", or "{_EXAMPLE}"')
    path, _, query = text.removeprefix(SCHEME).partition("?")
    where = _attributes(path, ";", _PATH)
    how = _attributes(query, "&", _QUERY)
    module = how.get("module-path", "")
    if not module.startswith("/"):
        raise KeyUnusable(f"the PKCS#11 URI names no module: write {_EXAMPLE}")
    if where.get("type", "private") != "private":
        raise KeyUnusable("type=: the identity key is a private key; leave type out")
    source = how.get("pin-source")
    return Pkcs11Uri(
        module=Path(unquote(module)),
        token=_text(where.get("token")),
        serial=_text(where.get("serial")),
        label=_text(where.get("object")) or OBJECT,
        id=unquote_to_bytes(where["id"]) if "id" in where else None,
        pin_file=None if source is None else _file(source),
    )


def kind(text: str) -> str:
    """Return `file` or `pkcs11`, for people and metrics: the URI itself tells where a PIN lies."""
    return FILE if text == FILE else "pkcs11"


def _attributes(part: str, separator: str, known: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in part.split(separator) if part else ():
        name, equals, value = item.partition("=")
        if name == "pin-value":  # It would stand in the configuration, and in the arguments of `enrol`.
            raise KeyUnusable(
                "pin-value= is not taken: put the PIN into a file with mode 0600 and write pin-source=file:"
            )
        if name not in known or not equals or not value or name in found:
            raise KeyUnusable(f"the PKCS#11 URI has {name[:40]!r}, not one each of {', '.join(known)}: {_EXAMPLE}")
        found[name] = value
    return found


def _text(value: str | None) -> str | None:
    return None if value is None else unquote(value)


def _file(source: str) -> Path:
    name = unquote(source.removeprefix("file:"))
    if name.startswith("//"):  # file:///etc/pin
        name = name[2:]
    if not name.startswith("/"):
        raise KeyUnusable("pin-source= takes a file with its whole path: pin-source=file:/etc/muster-agent/pin")
    return Path(name)
