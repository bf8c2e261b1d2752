"""The MQTT link: one connection to one broker that comes back by itself, with finite queues both ways.

It does not know topics or messages, does not store anything and does not decide what is sent: a process that dies
loses what was queued here, so whatever must survive waits in a database until its receiver has confirmed it.

paho speaks the protocol, but only the link's own thread touches it (`_Outbound` waits in the link's queue, not in
paho's): paho writes from the caller's thread otherwise, forgets its in-flight limit on reconnect, waits with
`select` (1,024 descriptors) and reconnects without jitter.
"""

import logging
import random
import re
import selectors
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Literal, NamedTuple, Protocol

from muster_shared.link.address import BrokerAddress
from muster_shared.link.client import BoundedClient, Traffic
from muster_shared.link.paho import (
    CallbackAPIVersion,
    MQTTProtocolVersion,
    PacketTypes,
    Properties,
    ReasonCode,
    mqtt,
)
from muster_shared.link.values import (
    AckToken,
    Connected,
    Delivered,
    Disconnected,
    LinkConfig,
    LinkCounters,
    LinkItem,
    LinkStopped,
    MessageProperties,
    Mid,
    MqttVersion,
    OutboundQueueFull,
    PayloadTooLarge,
    PublishRefused,
    Qos,
    Received,
    Subscribed,
)

FILTERS_A_SUBSCRIBE = 8  # What AWS IoT Core takes in one SUBSCRIBE.
CONNECT_TIMEOUT_S = 5.0  # TCP and TLS; it also bounds how long `stop` waits for an attempt under way.
CONNACK_TIMEOUT_S = 15.0  # A broker under a storm of ten thousand connections answers late, but within this.
AGAIN_S = 4.0  # For what waits, and for the goodbye, before a connection is made anew on purpose.
STEADY_AFTER_S = 10.0  # A connection that lasted this long starts the back-off anew.
_TICK_S = 1.0  # Keepalive and deadlines are looked at this often.
_READ_BURST = 64  # Packets read before the outgoing side gets its turn.
_MID_SPAN = 60_000  # Packet ids wrap at 65,535; none is handed out while one this old is still unanswered.
_UNSUPPORTED_PROTOCOL = 132  # CONNACK reason 0x84; paho also maps the 3.1.1 answer (return code 1) to it.
_HEADER_BYTES = 9  # Of a PUBLISH: type 1, remaining length 4, topic length 2, packet id 2.
_SILENT_CLOSES = 2  # Closed this often without a CONNACK: perhaps a broker that hangs up on MQTT 5.

_TOPIC = re.compile(r"[^+#\0]+")
_FILTER = re.compile(r"(?:(?:\+|[^+#\0/]*)/)*(?:#|\+|[^+#\0/]+|(?<=/))")
_log = logging.getLogger(__name__)


def backoff_s(retry: int, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Return the wait before retry 0, 1, 2...: full jitter, which spreads a fleet that lost its broker at once.

    Source: "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(retry, 32)))


class _Outbound(NamedTuple):  # Ten thousand at a time: it takes a fifth of the time of a frozen dataclass.
    mid: Mid
    topic: str
    payload: bytes
    qos: Qos
    retain: bool
    properties: Properties | None
    properties_bytes: int


class _Socket(Protocol):
    """What the loop needs of paho's socket, plain or TLS."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Link:
    """A connection to a broker, kept up by a thread of its own.

        start -> [wait] -> connecting -> connected -> lost -> [wait] ...        stop -> ended
                   ^____________|___________________________|

    Every method may be called from any thread, `on_item` included, and none of them waits for the network
    (but `stop`).
    """

    def __init__(self, config: LinkConfig, on_item: Callable[[LinkItem], None], *, rng: random.Random) -> None:
        """Make a link that is not started yet.

        Args:
            on_item: called from the link's thread, in order. It must only put the item into a finite queue: no
                waiting, no work. If it raises (its queue is full), the connection is cut: the broker then holds
                back, and repeats what was not acknowledged if the session is kept.
            rng: where the jitter comes from.
        """
        self._config = config
        self._on_item = on_item
        self._rng = rng
        # Guarded by `_lock`; everything below the next blank line belongs to the link's thread.
        self._lock = threading.Lock()
        self._queue: deque[_Outbound] = deque()
        self._in_flight: dict[int, tuple[int, _Outbound]] = {}
        self._acks: deque[AckToken] = deque()
        self._subscriptions: dict[str, Qos] = {}
        self._to_subscribe: dict[str, Qos] = {}
        self._to_unsubscribe: dict[str, None] = {}
        self._last_mid = 0
        self._refused = 0
        self._poked = False
        self._ended = False
        self._broker = config.broker
        self._again = threading.Event()
        self._stopping = threading.Event()
        self._drain_by = 0.0
        self._stop_by = 0.0
        self._thread: threading.Thread | None = None

        self._version = MqttVersion.V5
        self._traffic = Traffic()
        self._client = self._make_client(MqttVersion.V5)
        self._selector: selectors.BaseSelector | None = None
        self._wake_r, self._wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        self._wake_w.setblocking(False)
        self._connected = False
        self._connection = 0
        self._handed = 0
        self._window = config.max_inflight
        self._broker_packet_limit_bytes: int | None = None
        self._asked: dict[int, tuple[str, ...]] = {}
        self._proven = False
        self._answered = False
        self._version_refused = False
        self._loss: str | None = None
        self._progress = 0
        self._received = 0
        self._oversize = 0
        self._malformed = 0
        self._connects = 0

    @property
    def is_connected(self) -> bool:
        """Whether the broker has let us in and we have not noticed a loss since."""
        return self._connected

    @property
    def counters(self) -> LinkCounters:
        """What happened so far."""
        return LinkCounters(
            self._received,
            self._oversize,
            self._malformed,
            self._refused,
            max(0, self._connects - 1),
            self._traffic.sent,
            self._traffic.received,
        )

    def start(self) -> None:
        """Connect in the background, and keep trying for ever; a link starts once."""
        assert self._thread is None, "a link starts once"
        self._thread = threading.Thread(target=self._run, name=f"link-{self._config.client_id}", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Send what waits if connected (half of `timeout_s` at most), say goodbye (no will), end the thread.

        Returns:
            Whether the thread has ended; if not, it does within `CONNECT_TIMEOUT_S` and the time a name lookup takes.
        """
        now = time.monotonic()
        self._drain_by, self._stop_by = now + timeout_s / 2, now + timeout_s
        self._stopping.set()
        self._poke()
        if self._thread is None:
            self._close_wake()
            return True
        self._thread.join(timeout_s + 0.5)
        return not self._thread.is_alive()

    def reconnect(self, broker: BrokerAddress | None = None) -> None:
        """Leave (no will) once what waits is sent, or after AGAIN_S, and come again with the files as they are then.

        It does not wait. A broker sees the certificate of a connection only when it begins, and ends it when that is
        over.

        Args:
            broker: Where to come from now on; None: where it was.
        """
        if self._stopping.is_set():
            return
        if broker is not None:
            self._broker = broker
        now = time.monotonic()
        self._drain_by, self._stop_by = now + AGAIN_S / 2, now + AGAIN_S
        self._again.set()
        self._poke()

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: Qos,
        retain: bool = False,
        properties: MessageProperties | None = None,
    ) -> Mid:
        """Queue one message, connected or not; messages leave in order. `Delivered` or `PublishRefused` answers.

        What is still queued when a connection breaks is sent by the next one; QoS 0 already handed over is lost.

        Raises:
            OutboundQueueFull: `max_queued_out` messages wait.
            PayloadTooLarge: over `max_payload_bytes`.
            LinkStopped: after `stop`.
        """
        assert _TOPIC.fullmatch(topic), f"not a topic: {topic!r}"
        if len(payload) > self._config.max_payload_bytes:
            raise PayloadTooLarge(topic, len(payload), self._config.max_payload_bytes)
        packed, size = (None, 1) if properties is None else _pack(properties)
        with self._lock:
            if self._stopping.is_set():
                raise LinkStopped
            if len(self._queue) + len(self._in_flight) >= self._config.max_queued_out:
                self._refused += 1
                raise OutboundQueueFull(self._config.max_queued_out)
            self._last_mid += 1
            mid = Mid(self._last_mid)
            self._queue.append(_Outbound(mid, topic, payload, qos, retain, packed, size))
        self._poke()
        return mid

    def subscribe(self, filters: Iterable[str], *, qos: Qos = 1) -> None:
        """Ask for these topic filters now and on every later connection; `Subscribed` answers."""
        asked = dict.fromkeys(filters, qos)
        assert all(_FILTER.fullmatch(item) for item in asked), f"not topic filters: {sorted(asked)}"
        with self._lock:
            self._subscriptions |= asked
            self._to_subscribe |= asked
            for item in asked:
                self._to_unsubscribe.pop(item, None)
        self._poke()

    def unsubscribe(self, filters: Iterable[str]) -> None:
        """Stop asking for these topic filters, and tell the broker."""
        with self._lock:
            for item in filters:
                self._subscriptions.pop(item, None)
                self._to_subscribe.pop(item, None)
                self._to_unsubscribe[item] = None
        self._poke()

    def ack(self, token: AckToken) -> None:
        """Tell the broker that a message is safe with us. Call it after the commit, in the order of arrival.

        For QoS 0, or once the connection of the message is gone, it does nothing: the broker repeats the message.
        """
        if token.qos == 0 or token.connection != self._connection:
            return
        with self._lock:
            self._acks.append(token)
        self._poke()

    def _poke(self) -> None:
        with self._lock:
            if self._poked or self._ended:
                return
            self._poked = True
            with suppress(BlockingIOError):  # Then it is readable already.
                self._wake_w.send(b"\0")

    def _close_wake(self) -> None:
        with self._lock:
            self._ended = True
            self._wake_r.close()
            self._wake_w.close()

    # The thread: one connection after the other.

    def _run(self) -> None:
        retry = 0
        silent_closes = 0
        reported: str | None = None
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                reason, opened, was_connected = self._session()
                if was_connected or (reason != reported and not self._version_refused):
                    reported = reason
                    self._emit(Disconnected(reason))
                if self._version_refused:
                    self._speak(MqttVersion.V311)
                    continue  # The broker is there and has said what it wants: no reason to wait.
                silent_closes = silent_closes + 1 if opened and not self._answered else 0
                if silent_closes >= _SILENT_CLOSES and not self._proven:
                    silent_closes = 0
                    self._speak(MqttVersion.V311 if self._version is MqttVersion.V5 else MqttVersion.V5)
                if was_connected and time.monotonic() - began >= STEADY_AFTER_S:
                    retry = 0
                cap_s = self._config.reconnect_max_s
                self._stopping.wait(backoff_s(retry, self._config.reconnect_min_s, cap_s, self._rng))
                retry += 1
        finally:
            self._selector.close()
            self._close_wake()

    def _session(self) -> tuple[str, bool, bool]:
        """Make one connection and serve it to its end.

        Returns:
            Why it ended, whether the broker's port was open, whether the broker had let us in.
        """
        opened = saying_goodbye = False
        self._loss = None
        self._answered = False
        self._version_refused = False
        try:
            self._open()
            opened = True
            connack_by = time.monotonic() + CONNACK_TIMEOUT_S
            next_tick = 0.0
            while self._client.socket() is not None:
                now = time.monotonic()
                if not self._connected and not saying_goodbye and now > connack_by:
                    self._lose("the broker does not answer the CONNECT")
                    break
                if self._stopping.is_set() or self._again.is_set():
                    if now > self._stop_by or (not self._connected and not saying_goodbye):
                        break
                    if not saying_goodbye and self._may_leave(now):
                        saying_goodbye = True
                        self._client.disconnect()
                self._step()
                if now >= next_tick and self._client.socket() is not None:
                    next_tick = now + _TICK_S
                    self._client.loop_misc()
        except OSError as error:
            self._lose(f"{error.strerror or error}")
        except Exception as error:
            # A bug of paho's, or of ours, costs one connection, never the loop.
            _log.exception("link_fault")
            self._lose(f"{type(error).__name__}: {error}")
        was_connected, self._connected = self._connected, False
        self._hang_up()
        left = "stopped" if self._stopping.is_set() else "left to come again"
        reason = left if saying_goodbye else self._loss or "the broker closed the connection"
        return reason, opened, was_connected

    def _open(self) -> None:
        self._again.clear()
        self._aim(self._client, self._version)
        config = self._config
        if self._broker.tls:
            tls = ssl.create_default_context(cafile=config.ca_path)
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            if config.cert_path is not None:
                tls.load_cert_chain(config.cert_path, config.key_path)
            self._client.trust(tls)
        self._client.reconnect()

    def _hang_up(self) -> None:
        """Close without a goodbye whatever is still open, and forget what died with the connection."""
        sock = self._client.socket()
        if sock is not None:
            self._unwatch(sock)
            sock.close()  # paho drops its reference on the next `reconnect`.
        self._asked.clear()
        with self._lock:
            self._acks.clear()
            self._in_flight = {key: entry for key, entry in self._in_flight.items() if entry[1].qos == 1}

    def _speak(self, version: MqttVersion) -> None:
        if version is self._version:
            return
        self._version = version
        self._client = self._make_client(version)
        with self._lock:  # The new client knows nothing of what the old one had in flight.
            self._queue.extendleft(message for _, message in reversed(list(self._in_flight.values())))
            self._in_flight.clear()

    def _step(self) -> None:
        """Wait for the sockets once, read, and write what is due."""
        client, selector = self._client, self._selector
        sock = client.socket()
        assert sock is not None
        assert selector is not None
        interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.want_write() else 0)
        if selector.get_key(sock).events != interest:
            selector.modify(sock, interest)
        # Not visible to the selector: what was read ahead, and what TLS has decrypted.
        readable = client.has_unread or (isinstance(sock, ssl.SSLSocket) and sock.pending() > 0)
        for key, mask in selector.select(0.0 if readable else _TICK_S):
            if key.fileobj is sock:
                readable = readable or bool(mask & selectors.EVENT_READ)
            else:
                with self._lock:  # Both at once, or a poke in between is lost.
                    self._wake_r.recv(64)
                    self._poked = False
        if readable:
            for _ in range(_READ_BURST):
                before = self._progress
                client.loop_read()
                if client.socket() is None or self._progress == before:
                    break
        if self._loss is not None and client.socket() is not None:
            raise ConnectionError(self._loss)
        if self._connected and client.socket() is not None:
            self._flush()
        if client.want_write() and client.socket() is not None:
            client.loop_write()

    def _flush(self) -> None:
        """Hand to paho what waits: acknowledgements, subscriptions, then messages as far as the window allows."""
        client = self._client
        with self._lock:
            acks = [self._acks.popleft() for _ in range(len(self._acks))]
            leave, self._to_unsubscribe = list(self._to_unsubscribe), {}
            ask, self._to_subscribe = self._to_subscribe, {}
        for token in acks:
            if token.connection == self._connection:
                client.ack(token.packet_id, token.qos)
        for some_left in _slices(leave):
            client.unsubscribe(some_left)
        for some in _slices(list(ask)):
            _, packet_id = client.subscribe([(item, int(ask[item])) for item in some])
            if packet_id is not None:
                self._asked[packet_id] = tuple(some)
        too_large: list[_Outbound] = []
        with self._lock:
            while self._queue and len(self._in_flight) < self._window:
                oldest = next(iter(self._in_flight.values()), None)
                if oldest is not None and self._handed - oldest[0] > _MID_SPAN:
                    break
                message = self._queue.popleft()
                if self._is_over_broker_limit(message):
                    self._refused += 1
                    too_large.append(message)
                    continue
                # Whatever `info.rc` says, paho has it now: publishing again would send it twice.
                info = client.publish(
                    message.topic,
                    message.payload,
                    message.qos,
                    message.retain,
                    message.properties if self._version is MqttVersion.V5 else None,
                )
                self._handed += 1
                self._in_flight[info.mid] = (self._handed, message)
        for message in too_large:
            self._emit(PublishRefused(message.mid, "larger than the broker takes"))

    def _is_over_broker_limit(self, message: _Outbound) -> bool:
        limit = self._broker_packet_limit_bytes
        if limit is None:
            return False
        return len(message.payload) + len(message.topic.encode()) + message.properties_bytes + _HEADER_BYTES > limit

    def _may_leave(self, now: float) -> bool:
        if now > self._drain_by:
            return True
        with self._lock:
            return not (self._queue or self._in_flight or self._acks)

    def _lose(self, reason: str) -> None:
        if self._loss is None:
            self._loss = reason

    def _emit(self, item: LinkItem) -> None:
        try:
            self._on_item(item)
        except Exception as error:
            _log.exception("link_consumer_failed")
            self._lose(f"the consumer failed: {type(error).__name__}: {error}")

    # paho: making a client, and what it calls back (always on the link's thread).

    def _make_client(self, version: MqttVersion) -> BoundedClient:
        config, is_v5 = self._config, version is MqttVersion.V5
        client = BoundedClient(
            CallbackAPIVersion.VERSION2,
            client_id=config.client_id,
            clean_session=None if is_v5 else config.session_expiry_s == 0,
            protocol=MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.packet_limit_bytes = config.packet_limit_bytes
        client.traffic = self._traffic
        client.max_inflight_messages = 0  # `_flush` keeps the window.
        client.connect_timeout = CONNECT_TIMEOUT_S
        if config.broker.username is not None:
            client.username_pw_set(config.broker.username, config.broker.password)
        if config.will is not None:
            will = config.will
            delay: Properties | None = None
            if is_v5 and will.delay_s:
                delay = _properties(PacketTypes.WILLMESSAGE)
                delay.WillDelayInterval = will.delay_s
            client.will_set(will.topic, will.payload, will.qos, will.retain, delay)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_open = self._on_socket_open
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = _leave_writing_to_the_loop
        return client

    def _aim(self, client: BoundedClient, version: MqttVersion) -> None:
        """Say where and how the next connection is made."""
        config, address = self._config, self._broker
        if version is MqttVersion.V5:
            asked = _properties(PacketTypes.CONNECT)
            asked.ReceiveMaximum = min(config.max_inflight, 65_535)
            asked.MaximumPacketSize = config.packet_limit_bytes
            asked.SessionExpiryInterval = config.session_expiry_s
            clean: bool | Literal[3] = mqtt.MQTT_CLEAN_START_FIRST_ONLY if config.clean_start else False
            client.connect_async(address.host, address.port, config.keepalive_s, clean_start=clean, properties=asked)
        else:
            client.connect_async(address.host, address.port, config.keepalive_s)

    def _on_socket_open(self, _client: mqtt.Client, _userdata: object, sock: _Socket) -> None:
        assert self._selector is not None
        self._selector.register(sock, selectors.EVENT_READ)

    def _on_socket_close(self, _client: mqtt.Client, _userdata: object, sock: _Socket) -> None:
        self._unwatch(sock)

    def _unwatch(self, sock: _Socket) -> None:
        assert self._selector is not None
        with suppress(KeyError, ValueError):  # Closed by us before.
            self._selector.unregister(sock)

    def _on_connect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        flags: mqtt.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        self._answered = True
        if reason.is_failure:
            self._version_refused = self._version is MqttVersion.V5 and reason.value == _UNSUPPORTED_PROTOCOL
            self._lose(f"the broker refused us: {reason}")
            return
        self._proven = True
        self._connection += 1
        self._connects += 1
        self._window = min(self._config.max_inflight, _announced(properties, "ReceiveMaximum") or 65_535)
        self._broker_packet_limit_bytes = _announced(properties, "MaximumPacketSize")
        with self._lock:
            self._to_subscribe = dict(self._subscriptions)
        self._connected = True
        self._emit(Connected(self._version, flags.session_present))

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _userdata: object,
        flags: mqtt.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        said = "the broker ended the connection" if flags.is_disconnect_packet_from_server else "connection lost"
        self._lose(f"{said}: {self._client.tls_failure or reason}")

    def _on_message(self, client: mqtt.Client, _userdata: object, message: mqtt.MQTTMessage) -> None:
        self._progress += 1
        qos: Qos = 1 if message.qos else 0
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._malformed += 1
            client.ack(message.mid, qos)
            return
        if len(message.payload) > self._config.max_payload_bytes:
            self._oversize += 1
            client.ack(message.mid, qos)  # Or it would come back for ever.
            return
        self._received += 1
        token = AckToken(self._connection, message.mid, qos)
        self._emit(Received(topic, bytes(message.payload), qos, message.retain, token))

    def _on_publish(
        self,
        _client: mqtt.Client,
        _userdata: object,
        packet_id: int,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        self._progress += 1
        with self._lock:
            entry = self._in_flight.pop(packet_id, None)
            if entry is not None and reason.is_failure:
                self._refused += 1
        if entry is None:
            return
        mid = entry[1].mid
        self._emit(PublishRefused(mid, str(reason)) if reason.is_failure else Delivered(mid))

    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _userdata: object,
        packet_id: int,
        reasons: list[ReasonCode],
        _properties: Properties | None,
    ) -> None:
        self._progress += 1
        answers = list(zip(self._asked.pop(packet_id, ()), reasons, strict=False))
        self._emit(
            Subscribed(
                granted=tuple(item for item, reason in answers if not reason.is_failure),
                refused=tuple(item for item, reason in answers if reason.is_failure),
            )
        )


def _leave_writing_to_the_loop(_client: mqtt.Client, _userdata: object, _sock: _Socket) -> None:
    """While this is set, paho never writes from inside `publish`, `ack` or `subscribe`."""


def _slices(items: list[str]) -> Iterator[list[str]]:
    for begin in range(0, len(items), FILTERS_A_SUBSCRIBE):
        yield items[begin : begin + FILTERS_A_SUBSCRIBE]


def _properties(packet_type: int) -> Properties:
    return Properties(packet_type)  # type: ignore[no-untyped-call]  # paho leaves this class without types.


def _pack(properties: MessageProperties) -> tuple[Properties, int]:
    """Return the MQTT 5 properties and how many bytes they take at most."""
    packed = _properties(PacketTypes.PUBLISH)
    size = 4  # Their length.
    if properties.expiry_s is not None:
        packed.MessageExpiryInterval = properties.expiry_s
        size += 5
    if properties.correlation is not None:
        packed.CorrelationData = properties.correlation
        size += 3 + len(properties.correlation)
    if properties.response_topic is not None:
        packed.ResponseTopic = properties.response_topic
        size += 3 + len(properties.response_topic.encode())
    return packed, size


def _announced(properties: Properties | None, name: str) -> int | None:
    value: object = getattr(properties, name, None)
    return value if isinstance(value, int) else None
