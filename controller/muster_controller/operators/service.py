"""Operators at work: logging in, sessions, tokens, links, and who a credential stands for.

From any thread. Every change is in the audit log (`db.operator_store`). Passwords are slow on purpose: call `log_in`,
`use_link` and the setters from a worker thread.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock

import structlog

from muster_controller.acting import acting
from muster_controller.core.selector import parse as parse_selector
from muster_controller.db.operator_store import Credential, Operator, OperatorStore
from muster_controller.errors import NotFound
from muster_controller.operators import credentials
from muster_controller.operators.credentials import CredentialKind, Made
from muster_controller.operators.errors import Forbidden, LinkSpent, LoginLocked, LoginRefused, OperatorExists
from muster_controller.operators.local import LocalToken
from muster_controller.operators.lockout import SOURCE_FREE, Attempts
from muster_controller.operators.passwords import Passwords, check_fit
from muster_controller.operators.roles import GRANTS, Permission, Principal, PrincipalKind, Role, lesser, may, narrowed
from muster_shared.errors import WireError

FIRST = "admin"
SESSION_IDLE_S = 3600.0  # A page that is open asks all the time, so this is a page that was closed.
SESSION_S = 12 * 3600.0
LINK_S = 24 * 3600.0
TOKEN_S = 90 * 86_400.0
TOKEN_MAX_S = 366 * 86_400.0
LOGIN_TOKEN_S = 30 * 86_400.0
USED_EVERY_S = 60.0  # How fine "last used" is: a write for each request would be too many.
KEPT_S = 30 * 86_400.0  # What ran out is shown to nobody, and swept after this time.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._@+-]{0,62}[a-z0-9])?")
RESERVED = ("controller", "local", "device")

log = structlog.get_logger()


@dataclass(frozen=True)
class TokenWanted:
    """What an API token should be. `operator`: whose; None: one's own."""

    name: str
    operator: str | None = None
    role: Role | None = None
    selector: str = ""
    lives_s: float = TOKEN_S


@dataclass
class Operators:
    store: OperatorStore
    passwords: Passwords
    local: LocalToken
    clock: Callable[[], float]
    _sources: Attempts = field(default_factory=lambda: Attempts(SOURCE_FREE))
    _nobodies: Attempts = field(default_factory=Attempts)
    _lock: Lock = field(default_factory=Lock)

    # -- who is it? ----------------------------------------------------------------------------------------------------

    def by_bearer(self, text: str) -> Principal | None:
        """Return who sends this token; None for nobody."""
        if text.startswith(credentials.LOCAL_PREFIX):
            return self.local.principal if self.local.is_that(text) else None
        return self._by(CredentialKind.TOKEN, text)

    def by_session(self, text: str) -> Principal | None:
        """Return whose session this is; None where there is none, or it is over."""
        return self._by(CredentialKind.SESSION, text)

    def _by(self, kind: CredentialKind, text: str) -> Principal | None:
        found = self._valid(kind, text)
        if found is None:
            return None
        credential, operator = found
        now = self.clock()
        if kind is CredentialKind.SESSION and now - credential.used_at > SESSION_IDLE_S:
            return None
        if now - credential.used_at > USED_EVERY_S:
            self.store.used(credential.id, now)
        role = operator.role if credential.role is None else lesser(operator.role, credential.role)
        selector = narrowed(operator.selector, credential.selector)
        return Principal(
            name=operator.name,
            role=Role.OPERATOR if selector and role is Role.ADMIN else role,
            selector=selector,
            kind=PrincipalKind.SESSION if kind is CredentialKind.SESSION else PrincipalKind.TOKEN,
            credential=credential.id,
            expires_at=credential.expires_at,
        )

    def _valid(self, kind: CredentialKind, text: str) -> tuple[Credential, Operator] | None:
        shown = credentials.parse(kind, text)
        found = None if shown is None else self.store.find(shown.id)
        if shown is None or found is None:
            return None
        credential, operator = found
        is_good = (
            shown.is_that(credential.secret_sha256)
            and credential.kind is kind
            and credential.revoked_at is None
            and self.clock() < credential.expires_at
            and operator.is_enabled
        )
        return found if is_good else None

    # -- logging in ----------------------------------------------------------------------------------------------------

    def log_in(self, name: str, password: str, source: str) -> Operator:
        """Return the operator of this name and password. `source` is the address it comes from.

        Raises:
            LoginRefused, LoginLocked.
        """
        now = self.clock()
        known = self._count_try(name, source, now)
        stored = known.password if known is not None and known.is_enabled else ""
        checked = self.passwords.check(stored, password)
        if known is None or not checked.is_right:
            with self._lock:
                self._sources.failed(source, now)
            after = None if known is None else known.failures.failed(now)
            if known is not None and after is not None and after.wait_s(now) > 0.0:
                self.store.say_locked(known.name, after, source, now)
            log.warning("login_refused", operator=name[:64], source=source)
            raise LoginRefused
        with self._lock:
            self._sources.succeeded(source)
        if checked.renewed is not None:
            self.store.renew_hash(known.name, checked.renewed)
        return known

    def _count_try(self, name: str, source: str, now: float) -> Operator | None:
        with self._lock:
            wait_s = self._sources.wait_s(source, now)
        if wait_s > 0.0:
            raise LoginLocked(wait_s)
        known = self.store.count_try(name, now) if _NAME.fullmatch(name) else None
        if known is None:
            with self._lock:
                wait_s = self._nobodies.wait_s(name, now)
                if wait_s == 0.0:
                    self._nobodies.failed(name, now)
            if wait_s > 0.0:
                raise LoginLocked(wait_s)
        return known

    def begin_session(self, operator: Operator, how: str, replaces: Principal | None = None) -> Made:
        """Return a new session of who has proven to be `operator`; one that is replaced is over."""
        now = self.clock()
        made = credentials.make(CredentialKind.SESSION)
        session = self._new(made, CredentialKind.SESSION, operator.name, "", now, SESSION_S)
        old = replaces.credential if replaces is not None and replaces.kind is PrincipalKind.SESSION else None
        self.store.logged_in(operator.name, session, how, now, old)
        return made

    def begin_login_token(self, operator: Operator, where: str) -> tuple[Made, float]:
        """Return the token that the command line keeps after a login, and when it runs out."""
        now = self.clock()
        made = credentials.make(CredentialKind.TOKEN)
        token = self._new(made, CredentialKind.TOKEN, operator.name, f"login {where}"[:64].strip(), now, LOGIN_TOKEN_S)
        self.store.logged_in(operator.name, token, "a token for the command line", now, None)
        return made, token.expires_at

    def end(self, principal: Principal) -> None:
        """Log out: revoke what the request came with."""
        found = self.store.find(principal.credential) if principal.credential else None
        if found is not None:
            self.store.revoke(found[0], self.clock())

    # -- operators -----------------------------------------------------------------------------------------------------

    def begin_first(self) -> Made | None:
        """Make `admin` where there is no operator at all, and return its one-time link."""
        first = Operator(FIRST, Role.ADMIN, created_at=self.clock(), created_by=acting().actor)
        return self.make_link(FIRST) if self.store.create(first, only_first=True) else None

    def create(self, name: str, role: Role, selector: str, subject: str = "") -> Made:
        """Add an operator and return the one-time link to its password.

        Raises:
            WireError: the name cannot be one.  OperatorExists.  Forbidden: an admin of some devices.  SelectorInvalid.
        """
        if not _NAME.fullmatch(name) or name in RESERVED:
            raise WireError(f"{name[:80]!r} cannot be an operator's name: use 1 to 64 of a-z, 0-9 and . _ @ + -")
        if subject and self.store.by_subject(subject) is not None:
            raise OperatorExists("another operator has this OIDC subject; `muster user list` shows who")
        selector = _scope(role, selector)
        now = self.clock()
        self.store.create(Operator(name, role, selector, subject, created_at=now, created_by=acting().actor))
        return self.make_link(name)

    def make_link(self, name: str) -> Made:
        """Return a new one-time link of an operator; the one before it is void. Raises NotFound."""
        made = credentials.make(CredentialKind.ONCE)
        now = self.clock()
        self.store.add(self._new(made, CredentialKind.ONCE, name, "", now, LINK_S), "operator.link", "", now)
        return made

    def look_at_link(self, text: str) -> Operator:
        """Return whose link this is, and leave it good. Raises LinkSpent."""
        found = self._valid(CredentialKind.ONCE, text)
        if found is None:
            raise LinkSpent
        return found[1]

    def use_link(self, text: str, password: str) -> Operator:
        """Set the password of the link's operator; the link is spent. Raises LinkSpent, PasswordUnfit."""
        found = self._valid(CredentialKind.ONCE, text)
        if found is None:
            raise LinkSpent
        credential, operator = found
        check_fit(password, operator.name)
        hashed = self.passwords.hashed(password)
        if not self.store.set_password(operator.name, hashed, self.clock(), spent=credential.id):
            raise LinkSpent
        return operator

    def set_role(self, name: str, role: Role, selector: str, by: Principal) -> None:
        """Raises NotFound, Forbidden: oneself, or an admin of some devices; SelectorInvalid."""
        if by.operator == name:
            raise Forbidden("you cannot change your own role; another admin can")
        self.store.set_role(name, role, _scope(role, selector), self.clock())

    def set_password(self, name: str, password: str) -> None:
        """Raises NotFound, PasswordUnfit."""
        check_fit(password, name)
        self.store.operator(name)
        self.store.set_password(name, self.passwords.hashed(password), self.clock())

    def change_password(self, principal: Principal, current: str, password: str, source: str) -> Operator:
        """Change one's own password; its sessions are over. Raises LoginRefused, LoginLocked, PasswordUnfit."""
        if principal.operator is None:
            raise Forbidden("the local token has no password; log in as an operator, or use `muster user password`")
        check_fit(password, principal.name)
        operator = self.log_in(principal.name, current, source)
        self.store.set_password(operator.name, self.passwords.hashed(password), self.clock())
        return operator

    def disable(self, name: str, by: Principal) -> None:
        """Raises NotFound, Forbidden: oneself."""
        if by.operator == name:
            raise Forbidden("you cannot disable yourself; another admin can")
        self.store.disable(name, self.clock())

    def enable(self, name: str) -> None:
        """Raises NotFound."""
        self.store.enable(name, self.clock())

    def unlock(self, name: str) -> None:
        """Let an operator try passwords again, from anywhere. Raises NotFound."""
        self.store.unlock(name, self.clock())
        with self._lock:
            self._sources = Attempts(SOURCE_FREE)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def create_token(self, by: Principal, wanted: TokenWanted) -> tuple[Made, Credential]:
        """Return a new API token: one's own, or an admin's gift to an operator. Never more than who makes it.

        Raises:
            Forbidden: it would be more than `by`, or it is nobody's.  NotFound.  SelectorInvalid.
        """
        owner = wanted.operator or by.operator
        if owner is None:
            raise Forbidden("the local token has no account; say whose token it is to be: `muster token create --for`")
        if owner != by.operator and not may(by, Permission.ADMINISTER):
            raise Forbidden("only an admin makes tokens for others")
        now = self.clock()
        lives_s = min(wanted.lives_s, TOKEN_MAX_S)
        role, selector = wanted.role, wanted.selector
        if owner == by.operator:
            if role is not None and not GRANTS[role] <= GRANTS[by.role]:
                raise Forbidden(f"you are {by.role.value} here, so a token of yours cannot be {role.value}")
            if by.kind is PrincipalKind.TOKEN:
                # A token makes only what is less than itself: or a stolen one would never run out.
                role = role or by.role
                selector = narrowed(selector, by.selector)
                lives_s = min(lives_s, (by.expires_at or now) - now)
        if selector and role is None and self.store.operator(owner).role is Role.ADMIN:
            role = Role.OPERATOR  # An admin is of the whole fleet.
        selector = _scope(role or Role.VIEWER, selector)
        made = credentials.make(CredentialKind.TOKEN)
        token = self._new(made, CredentialKind.TOKEN, owner, wanted.name, now, lives_s, role, selector)
        said = f"{made.id} {wanted.name}: role {role.value if role else 'as its operator'}, devices {selector or 'all'}"
        self.store.add(token, "token.create", said, now)
        return made, token

    def revoke(self, credential: str, by: Principal) -> Credential:
        """End a session or a token: one's own, or anybody's by an admin. Raises NotFound."""
        found = self.store.find(credential)
        if found is None or (found[0].operator != by.operator and not may(by, Permission.ADMINISTER)):
            raise NotFound("token", credential)
        self.store.revoke(found[0], self.clock())
        return found[0]

    def credentials_of(self, operator: str | None) -> list[Credential]:
        """Return the sessions and tokens that count, of one operator or of all."""
        now = self.clock()
        found = self.store.credentials(operator, now)
        return [
            each
            for each in found
            if each.kind is CredentialKind.TOKEN
            or (each.kind is CredentialKind.SESSION and now - each.used_at <= SESSION_IDLE_S)
        ]

    def sweep(self) -> None:
        self.store.sweep(self.clock() - KEPT_S)

    # -- OIDC ----------------------------------------------------------------------------------------------------------

    def by_oidc(self, subject: str, suggested: str, role: Role | None, selector: str) -> Operator:
        """Return the operator of a subject that an identity provider vouches for, made where it is new.

        Args:
            suggested: A name for a new one.
            role: By its claims, which count at each login; None: they say nothing.
        Raises:
            LoginRefused: it is disabled, or claims give a new one no role.  OperatorExists: the name is taken.
        """
        now = self.clock()
        known = self.store.by_subject(subject)
        if known is None:
            name = re.sub(r"[^a-z0-9._@+-]", "-", suggested.lower())[:64].strip("-._@+")
            if role is None or not _NAME.fullmatch(name) or name in RESERVED:
                log.warning("oidc_refused", subject=subject, suggested=suggested[:64], role=role and role.value)
                raise LoginRefused
            known = Operator(name, role, _scope(role, selector), subject, created_at=now, created_by="oidc")
            self.store.create(known)
            return known
        if not known.is_enabled:
            raise LoginRefused
        if role is not None and (role, _scope(role, selector)) != (known.role, known.selector):
            self.store.set_role(known.name, role, _scope(role, selector), now)
        return known

    def _new(
        self,
        made: Made,
        kind: CredentialKind,
        operator: str,
        name: str,
        now: float,
        lives_s: float,
        role: Role | None = None,
        selector: str = "",
    ) -> Credential:
        return Credential(
            made.id, operator, kind, name, made.secret_sha256, role, selector, now, now, expires_at=now + lives_s
        )


def _scope(role: Role, selector: str) -> str:
    """Return the canonical selector of an operator. Raises SelectorInvalid, Forbidden."""
    found = str(parse_selector(selector))
    if found and role is Role.ADMIN:
        raise Forbidden("an admin is of the whole fleet; leave the selector out, or choose another role")
    return found
