"""A broker that others run: a Mosquitto with TLS by roots of its own, passwords or certificates, and a subscriber."""

import base64
import hashlib
import os
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.certificates import SmallCa
from harness.guarded_broker import free_port
from harness.listening import Message
from muster_controller.alerts.mqtt import Login
from muster_controller.broker.programs import BrokerKind, BrokerUnavailable, find_broker
from muster_shared.link import BrokerAddress, Link, LinkConfig, LinkItem, Received, Subscribed

TOPIC = "plant/7/alerts"
WAIT_S = 30.0
PASSWORD = "pass word"
SALT = b"twelve bytes"


class Subscriber:
    """Keeps what comes on `TOPIC`."""

    def __init__(self, config: LinkConfig) -> None:
        self.messages: list[Message] = []
        self._there = threading.Event()
        self._changed = threading.Condition()
        self._link = Link(config, self._take, rng=random.Random(1))
        self._link.subscribe([TOPIC])
        self._link.start()
        assert self._there.wait(WAIT_S)

    def _take(self, item: LinkItem) -> None:
        match item:
            case Subscribed(granted=granted) if TOPIC in granted:
                self._there.set()
            case Received():
                self._link.ack(item.token)
                with self._changed:
                    self.messages.append(Message(item.topic, item.payload))
                    self._changed.notify_all()
            case _:
                pass

    def wait(self, count: int) -> list[Message]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.messages) >= count, WAIT_S)
            return list(self.messages)

    def close(self) -> None:
        self._link.stop(5.0)


@contextmanager
def subscribed(config: LinkConfig) -> Iterator[Subscriber]:
    subscriber = Subscriber(config)
    try:
        yield subscriber
    finally:
        subscriber.close()


@dataclass(frozen=True)
class Plant:
    """A Mosquitto that others run, with TLS by roots of their own: `muster` may publish on TOPIC, `reader` read all."""

    ca: SmallCa
    port: int
    by_certificate: bool

    @property
    def address(self) -> str:
        user = "" if self.by_certificate else "muster@"
        return f"mqtts://{user}127.0.0.1:{self.port}/{TOPIC}"

    @property
    def login(self) -> Login:
        if not self.by_certificate:
            return Login(password=PASSWORD, ca=self.ca.roots.read_text())
        leaf = self.ca.leaf("muster")
        return Login(ca=self.ca.roots.read_text(), certificate=leaf.certificate.read_text() + leaf.key.read_text())

    @property
    def reader(self) -> LinkConfig:
        if not self.by_certificate:
            broker = BrokerAddress("127.0.0.1", self.port, tls=True, username="reader", password=PASSWORD)
            return LinkConfig(broker, "reader", ca_path=self.ca.roots)
        leaf = self.ca.leaf("reader")
        broker = BrokerAddress("127.0.0.1", self.port, tls=True)
        return LinkConfig(broker, "reader", ca_path=self.ca.roots, cert_path=leaf.certificate, key_path=leaf.key)


@contextmanager
def running_mosquitto(folder: Path, *, by_certificate: bool) -> Iterator[Plant]:
    if not has_mosquitto():
        pytest.skip("no Mosquitto")
    found = Plant(SmallCa.make(folder / "ca", "plant"), free_port(), by_certificate)
    own = found.ca.leaf("broker", server_names=("127.0.0.1",))
    hashed = base64.b64encode(hashlib.pbkdf2_hmac("sha512", PASSWORD.encode(), SALT, 101)).decode()
    line = f"$7$101${base64.b64encode(SALT).decode()}${hashed}"
    users, acl, settings = folder / "users", folder / "acl", folder / "plant.conf"
    users.write_text(f"muster:{line}\nreader:{line}\n")
    acl.write_text(f"user muster\ntopic write {TOPIC}\n\nuser reader\ntopic read #\n")
    by_password = ["allow_anonymous false", f"password_file {users}"]
    lines = [
        f"listener {found.port} 127.0.0.1",
        f"cafile {found.ca.roots}",
        f"certfile {own.certificate}",
        f"keyfile {own.key}",
        f"acl_file {acl}",
        *(["require_certificate true", "use_identity_as_username true"] if by_certificate else by_password),
        *(["user root"] if os.geteuid() == 0 else []),
    ]
    settings.write_text("\n".join(lines) + "\n")
    for file in (users, acl):
        file.chmod(0o600)
    _, program = find_broker(BrokerKind.MOSQUITTO)
    with (folder / "plant.log").open("wb") as log:
        process = subprocess.Popen(program.command(settings), stdout=log, stderr=log, cwd=folder)
    try:
        deadline = time.monotonic() + WAIT_S
        while not is_open(found.port):
            assert process.poll() is None, (folder / "plant.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield found
    finally:
        process.terminate()
        process.wait(WAIT_S)


def is_open(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def has_mosquitto() -> bool:
    try:
        find_broker(BrokerKind.MOSQUITTO)
    except BrokerUnavailable:
        return False
    return True
