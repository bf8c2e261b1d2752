"""The ways to the controller and the broker, step by step, so that the first that fails is named.

The controller is sent a request that it refuses, for the time in its answer. The broker is sent a CONNECT only while
the agent is not connected itself: two with one name would throw each other out.
"""

import socket
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPSConnection

from muster_agent.errors import EnrolmentRefused
from muster_agent.identity.channel import parse_device_url
from muster_agent.install.doctor.finding import Finding, fail, lasting, ok, warn
from muster_shared.enrolment import ANSWER_BYTES_MAX, CLOCK_SKEW_S, PATH, decode_answer
from muster_shared.errors import WireError
from muster_shared.link import BrokerAddress
from muster_shared.link.paho import CallbackAPIVersion, MQTTProtocolVersion, mqtt

ASK_S = 8.0
SKEW_WARN_S = 30.0
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME: whose clock is wrong is what is asked here.
_CLOCK = "set it, and run a time service (systemd-timesyncd, chrony)"


def check_clock(device_url: str, roots: str, now: Callable[[], float]) -> Finding:
    """Compare this device's clock with the controller's."""
    try:
        theirs = _server_time(device_url, roots)
    except (OSError, HTTPException, WireError, EnrolmentRefused, ValueError) as error:
        todo = "check address, network, and that the controller runs; the agent serves without it"
        return warn("clock", f"{device_url} does not tell the time ({_words(error)})", todo)
    return judge_clock(now() - theirs)


def judge_clock(ahead_s: float) -> Finding:
    """Return the finding for a clock that is `ahead_s` seconds before the controller's."""
    way = "ahead of" if ahead_s > 0 else "behind"
    said = f"it is {lasting(abs(ahead_s))} {way} the controller's"
    if abs(ahead_s) > CLOCK_SKEW_S:
        return fail("clock", said, f"{_CLOCK}: certificates and releases are judged by it")
    if abs(ahead_s) > SKEW_WARN_S:
        return warn("clock", said, _CLOCK)
    return ok("clock", said)


def check_broker(
    address: BrokerAddress, client_id: str, ca: str | None, cert: str | None, key: str | None, *, may_connect: bool
) -> Finding:
    """Go the agent's way to the broker: name, TCP, TLS, MQTT.

    Args:
        ca, cert, key: Paths of PEM files.
        may_connect: Whether to speak MQTT as well, under the agent's own name.
    """
    where, step = f"{address.host}:{address.port}", "DNS"
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        step = "TCP"
        with socket.create_connection((address.host, address.port), timeout=ASK_S) as plain:
            said = f"{where} answers"
            context = None
            if address.tls:
                step = "TLS"
                context = ssl.create_default_context(cafile=ca)
                if cert is not None:
                    context.load_cert_chain(cert, key)
                with context.wrap_socket(plain, server_hostname=address.host) as secured:
                    said += f", {secured.version()}, its certificate leads to the trusted CA"
        if may_connect:
            step = "MQTT"
            problem = _connect(address, client_id, context)
            if problem:
                todo = "see `muster device identities` on the controller: it may be revoked, or of another name"
                return fail("broker", f"{where} refuses MQTT: {problem}", todo)
            said += ", MQTT is accepted"
    except (OSError, ValueError) as error:
        return fail("broker", f"{where} fails at {step}: {_words(error)}", _BROKER[step])
    return ok("broker", said)


_BROKER = {
    "DNS": "correct the name (broker_url), or the name server of this device",
    "TCP": "see whether the broker runs, and whether a firewall is between",
    "TLS": "see `certificate` and `clock` here; after a change of the CA run `muster-agent renew`",
    "MQTT": "see the broker's log",
}


def _server_time(device_url: str, roots: str) -> float:
    where = parse_device_url(device_url)
    context = ssl.create_default_context(cadata=roots)
    context.verify_flags |= _NO_CHECK_TIME
    connection = HTTPSConnection(where.host, where.port, timeout=ASK_S, context=context)
    try:
        connection.request("POST", PATH, b"{}", {"Content-Type": "application/json", "Connection": "close"})
        return decode_answer(connection.getresponse().read(ANSWER_BYTES_MAX)).server_time
    finally:
        connection.close()


def _connect(address: BrokerAddress, client_id: str, context: ssl.SSLContext | None) -> str:
    """Return why the broker refuses; empty: it does not. Raises OSError."""
    reasons: list[str] = []
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
    client.on_connect = lambda _client, _data, _flags, reason, _properties: reasons.append(
        str(reason) if reason.is_failure else ""
    )
    if context is not None:
        client.tls_set_context(context)
    if address.username is not None:
        client.username_pw_set(address.username, address.password)
    client.connect_timeout = ASK_S
    client.connect(address.host, address.port)
    until = time.monotonic() + ASK_S
    while not reasons and time.monotonic() < until and client.loop(0.1) == mqtt.MQTT_ERR_SUCCESS:
        pass
    client.disconnect()
    return reasons[0] if reasons else "it closes the connection, or says nothing"


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return str(error.verify_message)
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
