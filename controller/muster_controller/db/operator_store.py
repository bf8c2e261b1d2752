"""Operators and their credentials as rows. Every change is written with its line of the audit log, in one transaction.

Decides nothing: who may do what is `operators`. Passwords come as argon2 strings and secrets as SHA-256.
"""

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from muster_controller.acting import Acting, acting
from muster_controller.db.audit import append
from muster_controller.db.errors import LedgerRefused
from muster_controller.db.side import SideDatabase
from muster_controller.db.tables import CredentialRow, OperatorRow, table
from muster_controller.errors import NotFound
from muster_controller.operators.credentials import CredentialKind
from muster_controller.operators.errors import LoginLocked, OperatorExists
from muster_controller.operators.lockout import Failures
from muster_controller.operators.roles import Role

_OPERATOR, _CREDENTIAL = table(OperatorRow), table(CredentialRow)
LISTED_MAX = 1000


@dataclass(frozen=True)
class Operator:
    """A person or a machine that may order."""

    name: str
    role: Role
    selector: str = ""
    subject: str = ""
    """`issuer subject` of OIDC."""
    password: str = field(default="", repr=False)
    created_at: float = 0.0
    created_by: str = ""
    disabled_at: float | None = None
    failures: Failures = field(default_factory=Failures)

    @property
    def is_enabled(self) -> bool:
        return self.disabled_at is None


@dataclass(frozen=True)
class Credential:
    id: str
    operator: str
    kind: CredentialKind
    name: str
    secret_sha256: str = field(repr=False)
    role: Role | None = None
    selector: str = ""
    created_at: float = 0.0
    used_at: float = 0.0
    expires_at: float = 0.0
    revoked_at: float | None = None


class OperatorStore:
    """From any thread. Everything raises LedgerUnavailable where the database is away."""

    def __init__(self, side: SideDatabase) -> None:
        self._side = side

    # -- operators -----------------------------------------------------------------------------------------------------

    def operators(self) -> list[Operator]:
        """Return the first LISTED_MAX, by name."""
        with self._side.reading() as connection:
            rows = connection.execute(select(_OPERATOR).order_by(_OPERATOR.c.name).limit(LISTED_MAX)).all()
        return [_operator(row) for row in rows]

    def operator(self, name: str) -> Operator:
        """Raises NotFound."""
        with self._side.reading() as connection:
            return _find(connection, name)

    def by_subject(self, subject: str) -> Operator | None:
        with self._side.reading() as connection:
            row = connection.execute(select(_OPERATOR).where(_OPERATOR.c.subject == subject)).first()
        return None if row is None else _operator(row)

    def create(self, operator: Operator, *, only_first: bool = False) -> bool:
        """Add one; return False where `only_first` and there is one already. Raises OperatorExists."""
        values = {
            "name": operator.name,
            "password": operator.password,
            "subject": operator.subject,
            "role": operator.role.value,
            "selector": operator.selector,
            "created_at": operator.created_at,
            "created_by": operator.created_by,
            "failures": 0,
            "locked_until": 0.0,
        }
        taken = OperatorExists(f"there is an operator {operator.name!r} already; `muster user list` shows who there is")
        try:
            with self._side.transaction() as connection:
                if only_first and connection.execute(select(func.count()).select_from(_OPERATOR)).scalar_one():
                    return False
                if connection.execute(select(_OPERATOR.c.name).where(_OPERATOR.c.name == operator.name)).first():
                    raise taken
                connection.execute(insert(_OPERATOR).values(**values))
                said = f"role {operator.role.value}, devices {operator.selector or 'all'}"
                append(connection, acting(), "operator.create", operator.name, said, operator.created_at)
        except LedgerRefused as error:  # Another controller of this database was quicker.
            if only_first:
                return False
            raise taken from error
        return True

    def set_role(self, name: str, role: Role, selector: str, now: float) -> None:
        """Raises NotFound."""
        said = f"role {role.value}, devices {selector or 'all'}"
        self._change(name, "operator.role", said, now, role=role.value, selector=selector)

    def set_password(self, name: str, password: str, now: float, *, spent: str | None = None) -> bool:
        """Keep the argon2 string, unlock, and end the operator's sessions; with `spent` only if that one-time link was
        good until now. Return whether it was. Raises NotFound."""
        with self._side.transaction() as connection:
            _find(connection, name)
            if spent is not None and not _revoke(connection, now, _CREDENTIAL.c.id == spent):
                return False
            values = {"password": password, "failures": 0, "locked_until": 0.0}
            connection.execute(update(_OPERATOR).where(_OPERATOR.c.name == name).values(**values))
            of_operator = _CREDENTIAL.c.operator == name
            _revoke(connection, now, of_operator & (_CREDENTIAL.c.kind != CredentialKind.TOKEN.value))
            said = "by a one-time link" if spent is not None else ""
            who = Acting(name, acting().request_id) if spent is not None else acting()
            append(connection, who, "operator.password", name, said, now)
        return True

    def renew_hash(self, name: str, password: str) -> None:
        """Keep the same password by newer parameters: no change that anybody ordered."""
        with self._side.transaction() as connection:
            connection.execute(update(_OPERATOR).where(_OPERATOR.c.name == name).values(password=password))

    def enable(self, name: str, now: float) -> None:
        """Raises NotFound."""
        self._change(name, "operator.enable", "", now, disabled_at=None, failures=0, locked_until=0.0)

    def unlock(self, name: str, now: float) -> None:
        """Raises NotFound."""
        self._change(name, "operator.unlock", "", now, failures=0, locked_until=0.0)

    def disable(self, name: str, now: float) -> None:
        """Disable, and revoke everything the operator holds. Raises NotFound."""
        with self._side.transaction() as connection:
            _find(connection, name)
            connection.execute(update(_OPERATOR).where(_OPERATOR.c.name == name).values(disabled_at=now))
            count = _revoke(connection, now, _CREDENTIAL.c.operator == name)
            append(connection, acting(), "operator.disable", name, f"{count} sessions, tokens and links revoked", now)

    def count_try(self, name: str, now: float) -> Operator | None:
        """Count a try to log in as failed before the password is looked at, so that tries at the same time all count.

        Return who it is, as before; None for an unknown name. Raises LoginLocked.
        """
        with self._side.transaction() as connection:
            row = connection.execute(select(_OPERATOR).where(_OPERATOR.c.name == name).with_for_update()).first()
            if row is None:
                return None
            found = _operator(row)
            wait_s = found.failures.wait_s(now)
            if wait_s > 0.0:
                raise LoginLocked(wait_s)
            after = found.failures.failed(now)
            values = {"failures": after.count, "locked_until": after.locked_until}
            connection.execute(update(_OPERATOR).where(_OPERATOR.c.name == name).values(**values))
            return found

    def say_locked(self, name: str, failures: Failures, source: str, now: float) -> None:
        with self._side.transaction() as connection:
            said = f"{failures.count} failures in a row, the last from {source}; for {failures.wait_s(now):.0f} s"
            append(connection, acting(), "operator.locked", name, said, now)

    def logged_in(self, name: str, session: Credential, how: str, now: float, replaced: str | None) -> None:
        """Forget the failures, end the session that this one replaces, and begin it."""
        with self._side.transaction() as connection:
            connection.execute(update(_OPERATOR).where(_OPERATOR.c.name == name).values(failures=0, locked_until=0.0))
            if replaced is not None:
                _revoke(connection, now, (_CREDENTIAL.c.id == replaced) & (_CREDENTIAL.c.kind == session.kind.value))
            _add(connection, session)
            append(connection, Acting(name, acting().request_id), "operator.login", name, how, now)

    # -- credentials ---------------------------------------------------------------------------------------------------

    def credentials(self, operator: str | None, now: float, kind: CredentialKind | None = None) -> list[Credential]:
        """Return those that still count, of one operator or of all, newest first; LISTED_MAX of them."""
        query = select(_CREDENTIAL).where(_CREDENTIAL.c.revoked_at.is_(None), _CREDENTIAL.c.expires_at > now)
        if operator is not None:
            query = query.where(_CREDENTIAL.c.operator == operator)
        if kind is not None:
            query = query.where(_CREDENTIAL.c.kind == kind.value)
        query = query.order_by(_CREDENTIAL.c.created_at.desc(), _CREDENTIAL.c.id).limit(LISTED_MAX)
        with self._side.reading() as connection:
            return [_credential(row) for row in connection.execute(query).all()]

    def find(self, credential: str) -> tuple[Credential, Operator] | None:
        """Return a credential, whatever has become of it, and whose it is."""
        with self._side.reading() as connection:
            row = connection.execute(select(_CREDENTIAL).where(_CREDENTIAL.c.id == credential)).first()
            if row is None:
                return None
            owner = connection.execute(select(_OPERATOR).where(_OPERATOR.c.name == row.operator)).first()
        return None if owner is None else (_credential(row), _operator(owner))

    def add(self, credential: Credential, action: str, detail: str, now: float) -> None:
        """Keep a new one; a new one-time link replaces the one before. Raises NotFound: there is no such operator."""
        with self._side.transaction() as connection:
            _find(connection, credential.operator)
            if credential.kind is CredentialKind.ONCE:
                links = _CREDENTIAL.c.kind == CredentialKind.ONCE.value
                _revoke(connection, now, links & (_CREDENTIAL.c.operator == credential.operator))
            _add(connection, credential)
            append(connection, acting(), action, credential.operator, detail, now)

    def used(self, credential: str, now: float) -> None:
        with self._side.transaction() as connection:
            connection.execute(update(_CREDENTIAL).where(_CREDENTIAL.c.id == credential).values(used_at=now))

    def revoke(self, credential: Credential, now: float) -> None:
        with self._side.transaction() as connection:
            if _revoke(connection, now, _CREDENTIAL.c.id == credential.id):
                said = f"{credential.kind.value} {credential.id} {credential.name}".strip()
                append(connection, acting(), f"{credential.kind.value}.revoke", credential.operator, said, now)

    def sweep(self, before: float) -> int:
        """Delete what ran out, or was revoked, before that moment; return how many."""
        old = (_CREDENTIAL.c.expires_at < before) | (_CREDENTIAL.c.revoked_at < before)
        with self._side.transaction() as connection:
            return int(connection.execute(delete(_CREDENTIAL).where(old)).rowcount)

    def _change(self, name: str, action: str, detail: str, now: float, **values: Any) -> None:
        with self._side.transaction() as connection:
            _find(connection, name)
            connection.execute(update(_OPERATOR).where(_OPERATOR.c.name == name).values(**values))
            append(connection, acting(), action, name, detail, now)


def _find(connection: Connection, name: str) -> Operator:
    row = connection.execute(select(_OPERATOR).where(_OPERATOR.c.name == name)).first()
    if row is None:
        raise NotFound("user", name)
    return _operator(row)


def _revoke(connection: Connection, now: float, which: Any) -> int:
    found = update(_CREDENTIAL).where(which, _CREDENTIAL.c.revoked_at.is_(None)).values(revoked_at=now)
    return int(connection.execute(found).rowcount)


def _add(connection: Connection, credential: Credential) -> None:
    connection.execute(
        insert(_CREDENTIAL).values(
            id=credential.id,
            operator=credential.operator,
            kind=credential.kind.value,
            name=credential.name,
            secret_sha256=credential.secret_sha256,
            role="" if credential.role is None else credential.role.value,
            selector=credential.selector,
            created_at=credential.created_at,
            used_at=credential.used_at,
            expires_at=credential.expires_at,
        )
    )


def _operator(row: Row[Any]) -> Operator:
    return Operator(
        name=row.name,
        role=Role(row.role),
        selector=row.selector,
        subject=row.subject,
        password=row.password,
        created_at=row.created_at,
        created_by=row.created_by,
        disabled_at=row.disabled_at,
        failures=Failures(row.failures, row.locked_until),
    )


def _credential(row: Row[Any]) -> Credential:
    return Credential(
        id=row.id,
        operator=row.operator,
        kind=CredentialKind(row.kind),
        name=row.name,
        secret_sha256=row.secret_sha256,
        role=Role(row.role) if row.role else None,
        selector=row.selector,
        created_at=row.created_at,
        used_at=row.used_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
