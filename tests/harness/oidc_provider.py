"""A small OpenID Connect provider on the loopback: it checks what a real one checks, and can be told to lie."""

import json
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

CLIENT_ID, CLIENT_SECRET = "muster-test", "a secret of the client"

Claims = dict[str, Any]


@dataclass
class Provider:
    """Whoever asks is let in at once, with `claims`."""

    claims: Claims = field(default_factory=dict)
    spoil: Callable[[Claims], Claims] = lambda claims: claims
    """What it lies about."""
    signed_with: str = "own"
    """`own`: the published key. `other`: one that is not. `shared`: HS256 with the client's secret."""
    issuer: str = ""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The queries of /authorize."""
    _key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    _other: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    def rotate(self) -> None:
        self._key = RSAKey.generate_key(2048, {"kid": "two"})

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
        }

    def jwks(self) -> dict[str, Any]:
        return {"keys": [self._key.as_dict(private=False)]}

    def authorize(self, query: dict[str, str]) -> str:
        """Return where the browser goes: back, with a code."""
        assert query["response_type"] == "code"
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        self.asked.append(query)
        code = secrets.token_urlsafe(16)
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def token(self, form: dict[str, str]) -> dict[str, str] | None:
        """Return tokens for a code, once; None: something does not fit."""
        query = self._codes.pop(form.get("code", ""), None)
        if query is None or form.get("client_secret") != CLIENT_SECRET:
            return None
        challenge = urlsafe_b64encode(sha256(form.get("code_verifier", "").encode()).digest()).rstrip(b"=").decode()
        if challenge != query["code_challenge"] or form.get("redirect_uri") != query["redirect_uri"]:
            return None
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": query["nonce"]}
        claims = self.spoil({**claims, **self.claims})
        return {"access_token": "x", "token_type": "Bearer", "id_token": self._signed(claims)}

    def _signed(self, claims: Claims) -> str:
        if self.signed_with == "shared":
            return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(CLIENT_SECRET))
        key = self._key if self.signed_with == "own" else self._other
        return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)


@contextmanager
def running_provider() -> Iterator[Provider]:
    provider = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            match parts.path:
                case "/.well-known/openid-configuration":
                    self._say(provider.discovery())
                case "/jwks":
                    self._say(provider.jwks())
                case "/authorize":
                    self.send_response(302)
                    self.send_header("Location", provider.authorize(_flat(parts.query)))
                    self.end_headers()
                case _:
                    self.send_error(404)

        def do_POST(self) -> None:
            form = _flat(self.rfile.read(int(self.headers["Content-Length"])).decode())
            tokens = provider.token(form) if self.path == "/token" else None
            self._say(tokens or {"error": "invalid_grant"}, 200 if tokens else 400)

        def _say(self, said: object, status: int = 200) -> None:
            raw = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.issuer = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5.0)


def _flat(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}
