"""JSON as a tree that may say what JSON libraries never write: a key twice, NaN, a number of a thousand digits.

Only for making inputs; nothing of the product reads with it.
"""

import json
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass

TEXT_MAX = 1 << 20


@dataclass
class Pairs:
    """An object, with its keys in order and perhaps not alone."""

    pairs: list[tuple[str, "Node"]]


@dataclass(frozen=True)
class Token:
    """Text that is written as it is."""

    text: str


Node = Pairs | Token | list["Node"] | str | bool | None


def read(text: str) -> Node:
    """Return the document in `text`. Raises ValueError: it is none, or too deep."""
    if len(text) > TEXT_MAX:
        raise ValueError("too long")
    try:
        found: Node = json.loads(
            text,
            object_pairs_hook=lambda pairs: Pairs(list(pairs)),
            parse_int=Token,
            parse_float=Token,
            parse_constant=Token,
        )
    except RecursionError as error:
        raise ValueError("too deep") from error
    return found


def write(node: Node) -> str:
    match node:
        case Pairs(pairs):
            return "{" + ",".join(f"{json.dumps(key)}:{write(value)}" for key, value in pairs) + "}"
        case list():
            return "[" + ",".join(map(write, node)) + "]"
        case Token(text):
            return text
        case _:
            return json.dumps(node)


def packed(text: str) -> tuple[Node, str] | None:
    """Return the document inside a string, and how it is packed: as text, in base64 or in its form for URLs."""
    for how, opened in (("text", lambda: text), ("base64", lambda: _b64(text)), ("url", lambda: _url(text))):
        try:
            inner = opened()
            if inner.lstrip()[:1] in ("{", "["):
                return read(inner), how
        except (ValueError, Base64Error):
            continue
    return None


def pack(node: Node, how: str) -> str:
    """Return `node` as it was in a string; the reverse of `packed`."""
    raw = write(node)
    if how == "text":
        return raw
    encoded = raw.encode("utf-8", "surrogatepass")
    return b64encode(encoded).decode() if how == "base64" else urlsafe_b64encode(encoded).rstrip(b"=").decode()


def _b64(text: str) -> str:
    return b64decode(text, validate=True).decode()


def _url(text: str) -> str:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
