"""Orders that are carried out once, however often they are sent: `Idempotency-Key`, and `ETag` with `If-Match`.

    POST, PUT, DELETE below /api with `Idempotency-Key`   the first is carried out; the same again gets the same answer
    GET below /api                                         the answer has an `ETag`; `If-None-Match` saves sending it
    PUT, DELETE with `If-Match`                            refused where the thing is another by now, or is not there

ASGI middleware behind the guard, which knows the principal. A key that was refused or failed is free again: nothing was
carried out. (draft-ietf-httpapi-idempotency-key-header; RFC 9110, 13.1.)
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio.to_thread
import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from muster_controller.api.guard import API, SAFE
from muster_controller.api.problems import classify, problem
from muster_controller.db.once_store import Answer, OnceStore
from muster_controller.errors import KeyReused, Stale
from muster_controller.operators.roles import Principal
from muster_shared.errors import MusterError

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
REPLAYED: Final = "Idempotency-Replayed"
BODY_BYTES_MAX: Final = 16 * 1024 * 1024
"""Of an order with a key. Blobs need none: their digest is one."""
ANSWER_BYTES_MAX: Final = 1024 * 1024
TAGGED_BYTES_MAX: Final = 4 * 1024 * 1024
"""Longer answers, and streams, have no `ETag`."""
LOCKS_MAX: Final = 1000
_KEY = re.compile(r"[\x21-\x7e]{16,255}")
_KEPT_HEADERS: Final = ("content-type", "location")

log = structlog.get_logger()


class Once:
    """Around the routes."""

    def __init__(self, app: ASGIApp, store: Callable[[], OnceStore]) -> None:
        self._app = app
        self._store = store
        self._locks: OrderedDict[str, asyncio.Lock] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(API):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if scope["method"] in ("GET", "HEAD"):
            await self._tagged(scope, receive, send, headers.get("if-none-match"))
        elif scope["method"] in SAFE:
            await self._app(scope, receive, send)
        else:
            await self._keyed(scope, receive, send, headers)

    async def _keyed(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        key, who = headers.get(IDEMPOTENCY_KEY), scope.get("state", {}).get("principal")
        is_bytes = headers.get("content-type", "").startswith("application/octet-stream")
        if key is None or is_bytes or not isinstance(who, Principal):
            await self._matched(scope, receive, send, headers)
            return
        if not _KEY.fullmatch(key):
            error = KeyReused(f"an {IDEMPOTENCY_KEY} has 16 to 255 visible ASCII characters, best a random UUID")
            await problem(422, "idempotency-key-invalid", str(error))(scope, receive, send)
            return
        body = await _read(receive)
        if body is None:
            await problem(413, "too-large", f"an order with a key has at most {BODY_BYTES_MAX} bytes")(
                scope, receive, send
            )
            return
        asked = b"\0".join((scope["method"].encode(), scope["path"].encode(), scope.get("query_string", b""), body))
        store = self._store()
        try:
            before = await anyio.to_thread.run_sync(store.begin, who.name, key, asked)
        except MusterError as error:
            await problem(*classify(error), str(error))(scope, receive, send)
            return
        if before is not None:
            await _replay(before, send)
            return
        held = _Held(send)
        try:
            await self._matched(scope, _saying(body), held.hear, headers)
        finally:
            with anyio.CancelScope(shield=True):  # Kept before it is said: whoever has the answer gets the same again.
                answer = held.answer()
                try:
                    if answer is not None and 200 <= answer.status < 300:
                        await anyio.to_thread.run_sync(store.answered, who.name, key, answer)
                    else:
                        await anyio.to_thread.run_sync(store.release, who.name, key)
                except MusterError as error:  # The order stands; its key is free again after HELD_S.
                    log.warning("answer_not_kept", error=str(error))
        await held.let_go()

    async def _matched(self, scope: Scope, receive: Receive, send: Send, headers: Headers) -> None:
        """Carry an order out where what is there fits its `If-Match`; one that was answered before never comes here."""
        wanted = headers.get("if-match")
        if wanted is None or scope["method"] not in ("PUT", "DELETE"):
            await self._app(scope, receive, send)
            return
        async with self._lock(scope["path"]):  # Nobody changes it between the look and the order.
            current = await self._current(scope)
            if current.fits(wanted):
                await self._app(scope, receive, send)
                return
        error = Stale(current.refusal(wanted))
        await problem(*classify(error), str(error))(scope, receive, send)

    async def _tagged(self, scope: Scope, receive: Receive, send: Send, known: str | None) -> None:
        """Answer a question with an `ETag`, where it is short and whole."""
        start: Message | None = None
        parts: list[bytes] = []
        is_passed = False

        async def listening(message: Message) -> None:
            nonlocal start, is_passed
            if is_passed:
                await send(message)
                return
            if message["type"] == "http.response.start":
                start = message
                if message["status"] != 200 or not _is_json(message):
                    is_passed = True
                    await send(message)
                return
            if message["type"] != "http.response.body" or start is None:
                await send(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body", False) and sum(map(len, parts)) <= TAGGED_BYTES_MAX:
                return
            is_passed = True
            body = b"".join(parts)
            if message.get("more_body", False):
                await send(start)
                await send({**message, "body": body})
                return
            said = MutableHeaders(scope=start)
            said["ETag"] = tag = _tag(body)
            if known is not None and (known.strip() == "*" or tag in _tags(known)):
                start["status"] = 304
                del said["content-length"]
                body = b""
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self._app(scope, receive, listening)

    async def _current(self, scope: Scope) -> "_Current":
        """Return what GET would say of the path now."""
        found = _Current(is_there=False, tag=None)
        asked = {**scope, "method": "GET", "query_string": b"", "state": dict(scope.get("state", {}))}

        async def listening(message: Message) -> None:
            nonlocal found
            if message["type"] == "http.response.start":
                tag = Headers(raw=message["headers"]).get("etag")
                found = _Current(is_there=message["status"] == 200, tag=tag)

        await self._tagged(asked, _saying(b""), listening, None)
        return found

    def _lock(self, path: str) -> asyncio.Lock:
        lock = self._locks.setdefault(path, asyncio.Lock())
        self._locks.move_to_end(path)
        while len(self._locks) > LOCKS_MAX and not next(iter(self._locks.values())).locked():
            self._locks.popitem(last=False)
        return lock


@dataclass(frozen=True)
class _Current:
    """What is at a path now: nothing (or nothing that may be seen), or a thing, with its `ETag` where it has one."""

    is_there: bool
    tag: str | None

    def fits(self, wanted: str) -> bool:
        """Return whether `If-Match` holds. (RFC 9110, 13.1.1: for what is not there it does not, `*` included.)"""
        return self.is_there and (wanted.strip() == "*" or self.tag in _tags(wanted))

    def refusal(self, wanted: str) -> str:
        said = wanted.strip()[:80]
        if not self.is_there:
            return f"there is nothing here that could be {said}; leave If-Match out"
        return f"it was changed since {said}; look at it again (it is {self.tag or 'without an ETag'} now)"


class _Held:
    """Keeps an answer back until it is kept; one that is too long to keep goes through."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._messages: list[Message] = []
        self._length = 0
        self._is_passing = False

    async def hear(self, message: Message) -> None:
        if self._is_passing:
            await self._send(message)
            return
        self._messages.append(message)
        self._length += len(message.get("body", b""))
        if self._length > ANSWER_BYTES_MAX:
            self._is_passing = True
            await self.let_go()

    def answer(self) -> Answer | None:
        """Return the whole answer; None: there is none, or it is too long."""
        if self._is_passing or not self._messages or self._messages[-1].get("more_body", False):
            return None
        start, *parts = self._messages
        said = Headers(raw=start["headers"])
        kept = {name: said[name] for name in _KEPT_HEADERS if name in said}
        return Answer(start["status"], kept, b"".join(each.get("body", b"") for each in parts))

    async def let_go(self) -> None:
        """Send what was held back."""
        messages, self._messages = self._messages, []
        for message in messages:
            await self._send(message)


def _saying(body: bytes) -> Receive:
    """Return what gives `body` once, as if it had just come, and then waits as a quiet client does."""
    said = False

    async def receive() -> Message:
        nonlocal said
        if said:
            await asyncio.Event().wait()
        said = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _read(receive: Receive) -> bytes | None:
    """Return the whole body; None: it is too long, or the client has gone."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if sum(map(len, parts)) > BODY_BYTES_MAX:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


async def _replay(answer: Answer, send: Send) -> None:
    headers = [(name.encode(), value.encode()) for name, value in answer.headers.items()]
    headers += [(b"content-length", str(len(answer.body)).encode()), (REPLAYED.lower().encode(), b"true")]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


def _tag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


def _tags(said: str) -> set[str]:
    return {each.strip().removeprefix("W/") for each in said.split(",")}


def _is_json(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("application/json")
