"""What is written for brokers of the user's own, read as those brokers read it.

EMQX is not run by any test: its rules are evaluated here by a reader of our own, after its documentation. Mosquitto's
ACL and NATS's users are read in the same way, beside the contract suite that runs both brokers.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from muster_controller.broker import emqx, mosquitto, nats
from muster_controller.broker.handout import Foreign, handouts
from muster_controller.broker.permissions import Access, allows
from muster_controller.broker.security import Admission, BrokerSecurity, TlsFiles
from muster_controller.cli.main import app
from muster_controller.client_names import controller_name, mixer_name
from muster_shared.ids import DeviceId, FleetId

FLEET = FleetId("plant")
MIXERS = ("m1", "m2")
NAMED = (controller_name(FLEET), mixer_name(FLEET, "m1"), mixer_name(FLEET, "m2"))
OTHERS = ("d1", "d10", *NAMED)
GONE = DeviceId("gone")
TLS = TlsFiles(Path("/c/ca.pem"), Path("/c/broker.pem"), Path("/c/broker.key"), Path("/c/crl.pem"))
ADMISSION = Admission(FLEET, "", TLS, (DeviceId("d1"), DeviceId("d10"), GONE), (GONE,), MIXERS)

names = st.sampled_from([*OTHERS, GONE])
levels = st.sampled_from(
    [
        *("muster", "v1", "plant", "other", "device", "d1", "d10", "gone", controller_name(FLEET)),
        *("twin", "presence", "event", "assignment", "ack", "controller", "trust", "root", "metrics", "c1", "$SYS"),
        *("mixed", "m1", "m2", "state", "mixer.m1.plant"),
    ]
)
paths = st.one_of(
    st.lists(levels, min_size=1, max_size=6).map("/".join),
    st.tuples(levels, levels).map(lambda two: f"muster/v1/plant/device/{two[0]}/{two[1]}"),
    levels.map(lambda one: f"muster/v1/plant/trust/{one}"),
    levels.map(lambda one: f"muster/v1/plant/mixed/{one}"),
    st.tuples(levels, levels).map(lambda two: f"muster/v1/plant/mixed/{two[0]}/{two[1]}"),
    st.sampled_from(
        ["muster/v1/plant/controller", "muster/v1/plant/metrics/c1"]
        + [f"muster/v1/plant/release/{'a' * 64}/{tail}" for tail in ("want", "chunk/0", "chunk")]
    ),
)


def matches(rule: str, topic: str) -> bool:
    """Whether a filter matches a topic, as MQTT says, by way of a regular expression."""
    if topic.startswith("$") and not rule.startswith("$"):
        return False
    pattern = re.escape(rule).replace(r"\+", "[^/]*").replace("/\\#", "(/.*)?").replace("\\#", ".*")
    return re.fullmatch(pattern, topic) is not None


_RULE = re.compile(r'\{(allow|deny), (all|\{username, "([^"]+)"\}), (all|publish|subscribe), \[([^\]]*)\]\}\.')


def emqx_allows(text: str, name: str, access: Access, topic: str) -> bool:
    """Walk through the rules from the top, as EMQX's documentation says."""
    for line in text.splitlines():
        if line.startswith("%%"):
            continue
        if line == "{deny, all}.":
            return False
        rule = _RULE.fullmatch(line)
        assert rule is not None, f"EMQX would not read {line}"
        verdict, who, username, action, listed = rule.groups()
        topics = [one.replace("${username}", name) for one in re.findall(r'"([^"]*)"', listed)]
        is_meant = (who == "all" or username == name) and action in ("all", access.value)
        if is_meant and any(matches(one, topic) for one in topics):
            return verdict == "allow"
    raise AssertionError("no rule at the end denies")


def mosquitto_allows(text: str, name: str, access: Access, topic: str) -> bool:
    """Rules of the user first, those that deny before the others; then the patterns (mosquitto.conf(5), acl_file)."""
    word = {Access.PUBLISH: "write", Access.SUBSCRIBE: "read"}[access]
    user, own, patterns = "", [], []
    for line in text.splitlines():
        match line.split(" "):
            case ["user", who]:
                user = who
            case ["topic", kind, rule] if user == name:
                own.append((kind, rule))
            case ["pattern", kind, rule]:
                patterns.append((kind, rule.replace("%u", name)))
            case _:
                assert line == "" or line.startswith(("#", "topic "))
    if any(kind == "deny" and matches(rule, topic) for kind, rule in own):
        return False
    return any(kind == word and matches(rule, topic) for kind, rule in own + patterns)


def nats_allows(text: str, name: str, access: Access, topic: str) -> bool:
    found = {user["user"]: user for user in json.loads(text)["users"]}
    assert all(user.startswith(f"urn:muster:{FLEET}:") for user in found)
    user = found.get(f"urn:muster:{FLEET}:{name}")
    if user is None:
        return False
    assert user["allowed_connection_types"] == ["MQTT"]
    listed = user["permissions"][access.value]["allow"]
    rules = [one.replace(".", "/").replace("*", "+") for one in listed if not one.startswith("$MQTT")]
    return any(matches(one, topic) for one in rules)


@given(names, st.sampled_from(Access), paths)
def test_every_broker_is_told_the_same_as_the_table(name: str, access: Access, topic: str) -> None:
    expected = name != GONE and allows(name, access, topic, FLEET)

    assert emqx_allows(emqx.acl(FLEET, [GONE], MIXERS), name, access, topic) is expected
    # NATS lists who may come; a topic with a dot in a name is none of ours, and its subject would be another.
    if not any(one in topic for one in NAMED):
        assert nats_allows(nats.authorization(ADMISSION), name, access, topic) is expected
    # The patterns are for all who come, so controller and mixers may also do what a device of their name might; none
    # is. What is told below is all that is left to them beyond the table.
    mosquitto_says = mosquitto_allows(mosquitto.acl(FLEET, [GONE], MIXERS), name, access, topic)
    if name not in NAMED:
        assert mosquitto_says is expected
    elif name not in topic and mosquitto_says is not expected:
        other = Access.SUBSCRIBE if access is Access.PUBLISH else Access.PUBLISH
        assert mosquitto_says, "what the table allows is allowed"
        assert allows(name, other, topic, FLEET), "it hears what it said itself, or says what it alone hears"


def test_mosquitto_denies_the_raw_windows_to_the_controller_although_patterns_are_for_everybody() -> None:
    text = mosquitto.acl(FLEET, [], MIXERS)

    for access in Access:
        assert not mosquitto_allows(text, controller_name(FLEET), access, "muster/v1/plant/metrics/3")
    assert mosquitto_allows(text, mixer_name(FLEET, "m1"), Access.SUBSCRIBE, "muster/v1/plant/metrics/3")
    assert not mosquitto_allows(text, mixer_name(FLEET, "m3"), Access.SUBSCRIBE, "muster/v1/plant/metrics/3")


def test_an_embedded_broker_is_told_where_files_are_wherever_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Path("muster-data/ca")
    security = BrokerSecurity(
        FLEET, here / "ca", here / "server", here / "server", here / "own", here / "own", list, list, here / "crl"
    )

    told = security.admission().tls

    assert told == TlsFiles(*(tmp_path / here / name for name in ("ca", "server", "server", "crl")))


def test_a_revoked_mixer_has_no_rights_on_any_broker() -> None:
    gone = mixer_name(FLEET, "m1")
    admission = Admission(FLEET, "", TLS, (), (DeviceId(gone),), ("m2",))

    for access in Access:
        for topic in ("muster/v1/plant/metrics/3", "muster/v1/plant/mixed/m1", "muster/v1/plant/trust/root"):
            assert not mosquitto_allows(mosquitto.acl(FLEET, [DeviceId(gone)], ["m2"]), gone, access, topic)
            assert not emqx_allows(emqx.acl(FLEET, [DeviceId(gone)], ["m2"]), gone, access, topic)
            assert not nats_allows(nats.authorization(admission), gone, access, topic)


def test_mosquitto_lets_the_controller_do_all_that_the_table_says() -> None:
    text = mosquitto.acl(FLEET)

    assert mosquitto_allows(text, controller_name(FLEET), Access.PUBLISH, "muster/v1/plant/device/d1/assignment")
    assert mosquitto_allows(text, controller_name(FLEET), Access.SUBSCRIBE, "muster/v1/plant/device/d1/twin")
    assert not mosquitto_allows(text, controller_name(FLEET), Access.PUBLISH, "muster/v1/plant/device/d1/twin")


@pytest.mark.parametrize(
    "asked", ["#", "+/#", "muster/#", "muster/v1/plant/device/+/ack", "muster/v1/plant/device/d10/#"]
)
def test_emqx_refuses_a_filter_that_reaches_further(asked: str) -> None:
    assert not emqx_allows(emqx.acl(FLEET), "d1", Access.SUBSCRIBE, asked)


def test_emqx_lets_nobody_in_without_a_certificate_and_takes_both_names_from_it() -> None:
    text = emqx.configuration(ADMISSION, 8883, Path("/rules"))

    for line in (
        "verify = verify_peer",
        "fail_if_no_peer_cert = true",
        "peer_cert_as_username = cn",
        "peer_cert_as_clientid = cn",
        "no_match = deny",
        "listeners.tcp.default.enable = false",
    ):
        assert line in text
    assert text.count("{") == text.count("}")


@pytest.mark.parametrize("broker", Foreign)
def test_a_handout_says_where_it_goes_and_names_the_files_of_the_operator(broker: Foreign) -> None:
    files = handouts(broker, ADMISSION, 8883)

    assert all(one.place and one.text.startswith(("#", "%%")) for one in files)
    assert "/c/broker.key" in files[0].text
    assert "8883" in files[0].text
    assert len({one.name for one in files}) == len(files)


@pytest.mark.parametrize("broker", Foreign)
def test_the_command_prints_and_writes_what_it_is_asked_for(broker: Foreign, tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    devices.write_text("d1\n\nd10\n")
    asked = ["broker", "config", "--for", broker.value, "--fleet", "plant", "--offline", "--devices", str(devices)]

    printed = CliRunner().invoke(app, asked)
    as_json = CliRunner().invoke(app, [*asked, "--json"])
    written = CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "out")])

    assert (printed.exit_code, as_json.exit_code, written.exit_code) == (0, 0, 0), printed.output
    texts = {one["name"]: one["text"] for one in json.loads(as_json.output)}
    assert {one.name: one.read_text() for one in (tmp_path / "out").iterdir()} == texts
    assert all(text in printed.output for text in texts.values())


def test_a_name_that_is_none_is_refused(tmp_path: Path) -> None:
    devices = tmp_path / "devices"
    devices.write_text('d1"; topic readwrite #\n')

    asked = ["--for", "mosquitto", "--fleet", "plant", "--offline", "--revoked", str(devices)]
    result = CliRunner().invoke(app, ["broker", "config", *asked])

    assert result.exit_code == 1


def test_a_list_of_devices_without_offline_is_not_ignored(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["broker", "config", "--for", "nats", "--fleet", "plant", "--devices", str(tmp_path / "devices")]
    )

    assert result.exit_code == 1
    assert "--offline" in result.output
