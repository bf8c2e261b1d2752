"""Webhooks, as Standard Webhooks 1.0 has them: a POST of JSON, signed with HMAC-SHA256.

    webhook-id         the same for every try of a notice: whoever sees it twice takes it once
    webhook-timestamp  Unix seconds of this try
    webhook-signature  v1,<base64 of HMAC-SHA256(secret, "<id>.<timestamp>.<body>")>

Redirects are not followed and no proxy of the environment is asked, so that a notice goes where an admin said and
nowhere else. Addresses inside are allowed: on-premise is the normal case. Specification: standardwebhooks.com.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
from typing import Final
from urllib.parse import urlsplit

import httpx
import msgspec

from muster_controller import __version__
from muster_controller.alerts.errors import ReceiverGone, ReceiverInvalid, TellingFailed
from muster_controller.core.alerts.grouping import Body
from muster_controller.db.receiver_store import Receiver

SECRET_PREFIX: Final = "whsec_"
SECRET_BYTES: Final = 24
URL_MAX: Final = 2000
TOTAL_S: Final = 15.0
GONE: Final = 410


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signature(secret: str, notice: str, timestamp: int, payload: bytes) -> str:
    """Return the header `webhook-signature`. `secret`: SECRET_PREFIX and base64."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = f"{notice}.{timestamp}.".encode() + payload
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def check_url(url: str) -> str:
    """Return `url`. Raises ReceiverInvalid."""
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_fit = False
    if not is_fit or len(url) > URL_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise ReceiverInvalid(f"a webhook is an http or https URL of at most {URL_MAX} ASCII characters")
    if parts.username is not None:
        raise ReceiverInvalid("a webhook's URL holds no user or password; the signature proves who sends")
    return url


class Webhooks:
    """Sends to webhooks. Safe from any thread that runs no event loop."""

    def __init__(self, *, total_s: float = TOTAL_S) -> None:
        self._total_s = total_s

    def send(self, receiver: Receiver, notice: str, body: Body, now: float) -> None:
        """Raises TellingFailed, ReceiverGone."""
        payload, timestamp = msgspec.json.encode(body), int(now)
        headers = {
            "content-type": "application/json",
            "user-agent": f"muster/{__version__}",
            "webhook-id": notice,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(receiver.secret, notice, timestamp, payload),
        }
        try:
            status = asyncio.run(self._post(receiver.address, payload, headers))
        except TimeoutError as error:
            raise TellingFailed(receiver.name, f"no answer in {self._total_s:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise TellingFailed(receiver.name, f"it cannot be reached ({type(error).__name__})") from error
        if status == GONE:
            raise ReceiverGone(receiver.name, "410 Gone: it wants no more")
        if not 200 <= status < 300:
            raise TellingFailed(
                receiver.name, f"it answered {status}" + (", a redirect" if 300 <= status < 400 else "")
            )

    async def _post(self, url: str, payload: bytes, headers: dict[str, str]) -> int:
        """Return the status. The body is not read: it is of no use, and could be endless."""
        async with (
            asyncio.timeout(self._total_s),  # Of all of it: httpx's own begin anew with every byte.
            httpx.AsyncClient(timeout=self._total_s, trust_env=False, follow_redirects=False) as client,
            client.stream("POST", url, content=payload, headers=headers) as answer,
        ):
            return answer.status_code
