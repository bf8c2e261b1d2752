"""Login by OpenID Connect: the authorization code flow with PKCE, state and nonce, and what claims make of somebody.

    /login/oidc ─▶ the provider ─▶ /login/oidc/callback?code&state ─▶ token endpoint ─▶ ID token, verified ─▶ role

What belongs to one login (state, nonce, verifier) is kept by the browser in a cookie of its own, so any controller of a
database can answer. Sources: OpenID Connect Core 1.0 (3.1.2, 3.1.3.7), RFC 7636, RFC 9700.
"""

import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from threading import Lock
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
import msgspec
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from muster_controller.operators.errors import OidcFailed
from muster_controller.operators.oidc_config import OidcConfig
from muster_controller.operators.roles import GRANTS, Role
from muster_shared.undecodable import UNDECODABLE, reason

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Public keys alone: an ID token signed with a shared secret, or with none, is refused."""
TIMEOUT_S = 10.0
ANSWER_BYTES_MAX = 512 * 1024
LEEWAY_S = 60
DISCOVERED_S = 3600.0
LOGIN_S = 600.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Attempt(msgspec.Struct, frozen=True):
    """One login under way, as its cookie says."""

    state: str
    nonce: str
    verifier: str
    next: str
    at: float


@dataclass(frozen=True)
class Vouched:
    """Who the provider says it is."""

    subject: str
    """`issuer sub`."""
    suggested: str
    role: Role | None
    selector: str


class _Discovered(msgspec.Struct):
    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str


class _Tokens(msgspec.Struct):
    id_token: str


class Oidc:
    """One provider. From worker threads: it waits for the provider."""

    def __init__(self, config: OidcConfig, clock: Callable[[], float] = time.time) -> None:
        is_local = urlsplit(config.issuer).hostname in _LOOPBACK
        if urlsplit(config.issuer).scheme != "https" and not is_local:
            raise OidcFailed(f"the issuer {config.issuer} has to be an https URL")
        self._config = config
        self._clock = clock
        self._is_local = is_local
        self._lock = Lock()
        self._found: tuple[_Discovered, KeySet, float] | None = None

    def begin(self, redirect_uri: str, next_path: str) -> tuple[str, Attempt]:
        """Return where to send the browser, and what its cookie has to say when it is back. Raises OidcFailed."""
        attempt = Attempt(
            secrets.token_urlsafe(24), secrets.token_urlsafe(24), secrets.token_urlsafe(48), next_path, self._clock()
        )
        digest = sha256(attempt.verifier.encode()).digest()
        query = {
            "response_type": "code",
            "client_id": self._config.client_id,
            "redirect_uri": redirect_uri,
            "scope": self._config.scope,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        endpoint = self._discover()[0].authorization_endpoint
        return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(query)}", attempt

    def finish(self, attempt: Attempt, state: str, code: str, redirect_uri: str) -> Vouched:
        """Return who it is that came back with `code`. Raises OidcFailed."""
        if not compare_digest(attempt.state.encode(), state.encode()):
            raise OidcFailed("this answer belongs to another login; begin again at /login")
        if not 0.0 <= self._clock() - attempt.at <= LOGIN_S:
            raise OidcFailed("this login took too long; begin again at /login")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "client_id": self._config.client_id,
            "code_verifier": attempt.verifier,
        }
        if self._config.client_secret:
            form["client_secret"] = self._config.client_secret
        tokens = self._ask("POST", self._discover()[0].token_endpoint, _Tokens, form)
        return self._vouched(self._verified(tokens.id_token, attempt.nonce))

    def _verified(self, id_token: str, nonce: str) -> dict[str, Any]:
        try:
            token = self._decoded(id_token)
            known = jwt.JWTClaimsRegistry(
                now=int(self._clock()),
                leeway=LEEWAY_S,
                iss={"essential": True, "value": self._config.issuer},
                sub={"essential": True},
                aud={"essential": True, "value": self._config.client_id},
                exp={"essential": True},
                iat={"essential": True},
                nonce={"essential": True, "value": nonce},
            )
            known.validate(token.claims)
        except (JoseError, ValueError, TypeError) as error:
            raise OidcFailed(f"the provider's ID token does not hold ({error}); are both clocks right?") from error
        claims: dict[str, Any] = token.claims
        if claims.get("azp", self._config.client_id) != self._config.client_id:
            raise OidcFailed("the provider's ID token is for another client")
        return claims

    def _decoded(self, id_token: str) -> jwt.Token:
        """Decode with the provider's keys; ask for them again where they have rotated."""
        try:
            return jwt.decode(id_token, self._discover()[1], algorithms=ALGORITHMS)
        except (JoseError, ValueError):
            with self._lock:
                self._found = None
            return jwt.decode(id_token, self._discover()[1], algorithms=ALGORITHMS)

    def _vouched(self, claims: dict[str, Any]) -> Vouched:
        found = claims.get(self._config.claim, [])
        values = [found] if isinstance(found, str) else found if isinstance(found, list) else []
        given = [self._config.roles[each] for each in values if isinstance(each, str) and each in self._config.roles]
        best = max(given, key=lambda each: (len(GRANTS[each[0]]), not each[1]), default=None)
        names = (claims.get(name) for name in ("preferred_username", "email", "sub"))
        suggested = next((name for name in names if isinstance(name, str) and name), "")
        role, selector = best if best is not None else (None, "")
        return Vouched(f"{self._config.issuer} {claims['sub']}", suggested, role, selector)

    def _discover(self) -> tuple[_Discovered, KeySet]:
        with self._lock:
            found, now = self._found, self._clock()
            if found is not None and now - found[2] < DISCOVERED_S:
                return found[0], found[1]
            where = self._config.issuer.rstrip("/") + "/.well-known/openid-configuration"
            said = self._ask("GET", where, _Discovered)
            if said.issuer != self._config.issuer:
                raise OidcFailed(f"{where} speaks for {said.issuer[:200]}; give exactly that as the issuer, if it is")
            if not self._is_local:
                for endpoint in (said.authorization_endpoint, said.token_endpoint, said.jwks_uri):
                    if urlsplit(endpoint).scheme != "https":
                        raise OidcFailed(f"the provider names {endpoint[:200]}, which is not https")
            try:
                keys = KeySet.import_key_set(self._ask("GET", said.jwks_uri, dict))
            except (JoseError, ValueError, TypeError, KeyError) as error:
                raise OidcFailed(f"the provider's keys cannot be read: {error}") from error
            self._found = (said, keys, now)
            return said, keys

    def _ask(self, method: str, url: str, kind: Any, form: dict[str, str] | None = None) -> Any:
        """Return the provider's JSON as `kind`; without redirects, sized and timed."""
        try:
            with (
                httpx.Client(timeout=TIMEOUT_S, trust_env=not self._is_local) as client,
                client.stream(method, url, data=form, headers={"Accept": "application/json"}) as answer,
            ):
                raw = b""
                for piece in answer.iter_bytes():
                    raw += piece
                    if len(raw) > ANSWER_BYTES_MAX:
                        raise OidcFailed(f"{url} says more than {ANSWER_BYTES_MAX} bytes")
                if not answer.is_success:
                    raise OidcFailed(f"the identity provider refuses ({answer.status_code} of {url})")
            return msgspec.json.decode(raw, type=kind)
        except httpx.HTTPError as error:
            raise OidcFailed(
                f"the identity provider does not answer ({error}); try again, or use a password"
            ) from error
        except UNDECODABLE as error:
            raise OidcFailed(f"{url} does not say what OpenID Connect asks for: {reason(error)}") from error
