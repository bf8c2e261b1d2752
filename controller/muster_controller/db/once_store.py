"""Orders that came with an idempotency key, and what they were answered, as rows.

A database that is stolen tells neither keys nor answers: of a key the digest is kept, and an answer, which may hold a
token that is shown once, is encrypted with a key derived from the idempotency key itself.
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import delete, func, insert, select, update

from muster_controller.db.errors import LedgerRefused
from muster_controller.db.rows import text
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import OnceRow, table
from muster_controller.errors import Conflict, KeyReused

KEPT_S: Final = 86_400.0
HELD_S: Final = 300.0
"""An order that is not answered after so long was cut off with its controller: its key is free again."""
KEYS_MAX: Final = 10_000
"""Of one principal."""
_ONCE = table(OnceRow)
_NONCE: Final = 12
UNDER_WAY: Final = "the same order is being carried out; ask again in a moment"


@dataclass(frozen=True)
class Answer:
    """What an order was answered."""

    status: int
    headers: dict[str, str]
    body: bytes


class OnceStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase, clock: Callable[[], float]) -> None:
        self._side = side
        self._clock = clock

    def begin(self, principal: str, key: str, request: bytes) -> Answer | None:
        """Take `key` for this request, or return what the same request was answered before.

        Args:
            request: What was asked: method, path and body; its digest is kept.

        Raises:
            Conflict: the same request is being carried out, or the principal has too many keys.
            KeyReused: the key came with another request.
        """
        try:
            return self._begin(principal, key, hashlib.sha256(request).hexdigest())
        except LedgerRefused as error:  # The same key, at the same moment, through another connection.
            raise Conflict(UNDER_WAY) from error

    def _begin(self, principal: str, key: str, digest: str) -> Answer | None:
        now = self._clock()
        where = (_ONCE.c.principal == text(principal)) & (_ONCE.c.key == _digest(key))
        with self._side.transaction() as connection:
            connection.execute(delete(_ONCE).where(_ONCE.c.at < now - KEPT_S))
            row = connection.execute(select(_ONCE).where(where)).mappings().first()
            if row is not None and row["status"] is None and row["at"] < now - HELD_S:
                connection.execute(delete(_ONCE).where(where))
                row = None
            if row is None:
                query = select(func.count()).select_from(_ONCE).where(_ONCE.c.principal == principal)
                if connection.execute(query).scalar_one() >= KEYS_MAX:
                    raise Conflict(f"{principal} has {KEYS_MAX} idempotency keys of the last day; send fewer with one")
                values = {"principal": principal, "key": _digest(key), "request": digest, "at": now, "headers": ""}
                connection.execute(insert(_ONCE).values(**values))
                return None
        if row["request"] != digest:
            raise KeyReused("this idempotency key came with another request before; make a new key for a new order")
        if row["status"] is None:
            raise Conflict(UNDER_WAY)
        return Answer(
            row["status"], msgspec.json.decode(row["headers"], type=dict[str, str]), _opened(key, row["body"])
        )

    def answered(self, principal: str, key: str, answer: Answer) -> None:
        """Keep what the order was answered."""
        with self._side.transaction() as connection:
            connection.execute(
                update(_ONCE)
                .where((_ONCE.c.principal == principal) & (_ONCE.c.key == _digest(key)))
                .values(
                    status=answer.status,
                    headers=msgspec.json.encode(answer.headers).decode(),
                    body=_sealed(key, answer.body),
                )
            )

    def release(self, principal: str, key: str) -> None:
        """Free a key whose order was refused or failed: nothing was carried out, so it may be sent again."""
        with self._side.transaction() as connection:
            connection.execute(delete(_ONCE).where((_ONCE.c.principal == principal) & (_ONCE.c.key == _digest(key))))


def _digest(key: str) -> str:
    return hashlib.sha256(b"muster once " + key.encode()).hexdigest()


def _cipher(key: str) -> ChaCha20Poly1305:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"muster idempotency answer").derive(key.encode())
    return ChaCha20Poly1305(derived)


def _sealed(key: str, body: bytes) -> bytes:
    nonce = os.urandom(_NONCE)
    return nonce + _cipher(key).encrypt(nonce, body, None)


def _opened(key: str, sealed: bytes) -> bytes:
    try:
        return _cipher(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
    except InvalidTag as error:
        raise Conflict("what this order was answered cannot be read any more; look at what it did") from error
