"""Receivers that listen on the loopback: a webhook that answers as a test says, and a sink for mail."""

import base64
import hashlib
import hmac
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import msgspec


@dataclass(frozen=True)
class Post:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.raw)

    def is_signed_with(self, secret: str) -> bool:
        """Check it as the documentation of Standard Webhooks says, by code that shares nothing with ours."""
        said = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + self.raw
        key = base64.b64decode(secret[len("whsec_") :])
        digest = base64.b64encode(hmac.new(key, said, hashlib.sha256).digest()).decode()
        return f"v1,{digest}" in self.headers["webhook-signature"].split(" ")


@dataclass
class Hook:
    """A webhook: it gives `answers` in turn, and 204 from then on."""

    url: str = ""
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    posts: list[Post] = field(default_factory=list)
    holds: threading.Event | None = None
    """While it is not set no request is answered."""


@contextmanager
def running_hook() -> Iterator[Hook]:
    hook = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["content-length"]))
            hook.posts.append(Post(self.path, {name.lower(): value for name, value in self.headers.items()}, raw))
            if hook.holds is not None:
                hook.holds.wait(30.0)
            status, headers = hook.answers.pop(0) if hook.answers else (204, {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_said: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, HTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        hook.url = f"http://127.0.0.1:{server.server_address[1]}/alerts"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield hook
        finally:
            if hook.holds is not None:
                hook.holds.set()
            server.shutdown()
            thread.join(5.0)


@dataclass
class PostOffice:
    """A mail server that takes everything, or refuses with a line of `refusals` in turn at RCPT."""

    port: int = 0
    mails: list[Message] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


@contextmanager
def running_post_office(security: str = "plain", context: ssl.SSLContext | None = None) -> Iterator[PostOffice]:
    """`security`: plain, starttls or tls; the latter two with `context`."""
    office = PostOffice()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            connection: socket.socket = self.request
            connection.settimeout(10.0)
            if security == "tls":
                assert context is not None
                connection = context.wrap_socket(connection, server_side=True)
            lines = connection.makefile("rb")

            def say(text: str) -> None:
                connection.sendall(text.encode() + b"\r\n")

            say("220 sink")
            while line := lines.readline(65_536):
                words = line.decode().strip()
                verb = words.split(" ")[0].upper()
                office.commands.append(verb)
                match verb:
                    case "EHLO":
                        offers = ["sink", "AUTH PLAIN"]
                        offers += (
                            ["STARTTLS"] if security == "starttls" and not isinstance(connection, ssl.SSLSocket) else []
                        )
                        say("\r\n".join(f"250{'-' if each is not offers[-1] else ' '}{each}" for each in offers))
                    case "STARTTLS" if security == "starttls" and context is not None:
                        say("220 go on")
                        connection = context.wrap_socket(connection, server_side=True)
                        lines = connection.makefile("rb")
                    case "AUTH":
                        office.logins.append(base64.b64decode(words.split(" ")[2]).decode())
                        say("235 welcome")
                    case "RCPT" if office.refusals:
                        say(office.refusals.pop(0))
                    case "DATA":
                        say("354 go on")
                        raw = b""
                        while (part := lines.readline(65_536)) not in (b".\r\n", b""):
                            raw += part
                        office.mails.append(message_from_bytes(raw, policy=default))
                        say("250 taken")
                    case "QUIT":
                        say("221 bye")
                        return
                    case _:
                        say("250 yes")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        office.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield office
        finally:
            server.shutdown()
            thread.join(5.0)
