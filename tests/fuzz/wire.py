"""Targets of the wire: messages and what a controller does with them, topics, assignments, enrolment, manifests."""

import atexit
import shutil
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner

from fuzz.target import Target, once
from harness.enrolling import AskingDevice, csr, new_key, public_pem
from harness.fleet_stage import FILE, MODEL, Stage, presence, release, replace_policy, twin
from harness.pipelines import manifest as with_pipeline
from harness.pipelines import tensor
from muster_controller.db.ledger import SqlLedger
from muster_controller.identity import requests
from muster_controller.identity.errors import RequestInvalid
from muster_shared import assignment, bundle, call, enrolment, messages, topics
from muster_shared.assignment import Activation, Assignment, MaintenanceWindow, ModelAssignment, Trial, Watch
from muster_shared.bundle import Golden, Lineage, Manifest, Serving, Slo, StateTensor, TensorSpec, Variant
from muster_shared.errors import WireError
from muster_shared.ids import DeviceId, EventId, FleetId, RolloutId, Sha256
from muster_shared.link import BrokerUrlInvalid, parse_broker_url
from muster_shared.messages import MESSAGE_BYTES_MAX, Message
from muster_shared.pipeline import (
    Boxes,
    Cast,
    CtcGreedy,
    DecodeImage,
    DecodeText,
    DecodeWav,
    FinishStep,
    FitLength,
    Frame,
    Label,
    Layout,
    Media,
    Normalise,
    PrepareStep,
    Quantise,
    Reshape,
    Resize,
    Slice,
    Softmax,
    Tokenise,
    TopK,
    Transpose,
    Values,
    Window,
)

FLEET, DEVICE = FleetId("test"), DeviceId("crane-7")
KINDS: tuple[type[Message], ...] = (
    messages.Twin,
    messages.Presence,
    messages.Event,
    messages.Ack,
    messages.ControllerSession,
    messages.Want,
    messages.TrustFiles,
    messages.Answer,
)


# -- messages ----------------------------------------------------------------------------------------------------------


def _bodies() -> list[messages.EventBody]:
    window = messages.WindowReport(seconds=10.0, requests=100, errors=1, latency_ms_p95=3.5, compared=10, disagreed=1)
    step = messages.StepReached(
        release=release(1), step=messages.Step.FETCHING, rollout=RolloutId("r-1"), bytes_fetched=7, until=5.0
    )
    return [
        step,
        messages.OutcomeReported(
            release=release(1), rollout=RolloutId("r-1"), wave=0, good=False, reason="slow", window=window
        ),
        messages.AssignmentRefused(refusal=messages.Refusal.FORGED, counter=3, detail="no key"),
        messages.FaultSeen(model=MODEL, detail="rotten"),
    ]


@once
def message_seeds() -> list[bytes]:
    tuning = messages.Tuning(
        variant="int8",
        engine="onnxruntime 1.24",
        device="CPU",
        precision="int8",
        threads=2,
        instances=1,
        batch_max=8,
        rows_per_s=400.0,
        latency_ms_p95=9.0,
        alternatives=(messages.TuningTrial(variant="fp32", threads=2, instances=1, refused="slower"),),
    )
    model = messages.TwinModel(model=MODEL, phase="idle", active=release(1), progress=0.5, tuning=tuning)
    whole = msgspec.structs.replace(
        twin("crane-7", 4, release(1)), labels={"site": "berlin"}, timezone="+02:00", models=(model,)
    )
    events = [
        messages.Event(id=EventId(f"e{number}"), device=DEVICE, at=5.0, body=body)
        for number, body in enumerate(_bodies())
    ]
    others: list[Message] = [
        presence("crane-7"),
        messages.Ack(ids=(EventId("a"), EventId("b"))),
        messages.ControllerSession(session="s", sent_at=1.0),
        messages.Want(device=DEVICE, length=5000, chunk_bytes=1024, missing=messages.pack_bits((0, 3), 5)),
        messages.TrustFiles(role="timestamp", files={"timestamp.json": '{"signed": {"version": 1}}'}),
        messages.Answer(
            id="c-1",
            device=DEVICE,
            at=5.0,
            ok=True,
            models=(messages.ModelChecked(model=MODEL, version="1.0.0", ok=True, calls=3, latency_ms_p95=2.5),),
            lines=("started",),
        ),
    ]
    return [messages.encode(each) for each in (whole, *events, *others)]


def decode_message(data: bytes) -> None:
    """What decodes can be told again, and means the same; whoever cannot decode it says so."""
    refusal: WireError | None = None
    for kind in KINDS:
        try:
            found = messages.decode(data, kind)
        except WireError as error:
            refusal = error
            if len(str(error)) > 1000:
                raise
            continue
        assert messages.decode(messages.encode(found), kind) == found
        if isinstance(found, messages.Want):
            indices = messages.unpack_bits(found.missing, 8 * len(found.missing))
            assert messages.pack_bits(indices, 8 * len(found.missing)) == found.missing
    if refusal is not None:
        raise refusal


# -- what a controller does with them ----------------------------------------------------------------------------------


class _RolledBack(Exception):
    """So that every input meets the same fleet."""


@cache
def _stage() -> Stage:
    folder = Path(tempfile.mkdtemp(prefix="muster-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    stage = Stage(SqlLedger(folder / "muster.db", lambda: 1000.0), folder / "muster.db")
    for device in ("crane-7", "crane-8"):
        stage.join(device, labels={"site": "berlin"})
    stage.roll_out(1, replace_policy(waves=(100,)))
    return stage


TOPICS: dict[str, topics.Topic] = {
    topics.Channel.TWIN.value: topics.DeviceTopic(DEVICE, topics.Channel.TWIN),
    topics.Channel.PRESENCE.value: topics.DeviceTopic(DEVICE, topics.Channel.PRESENCE),
    topics.Channel.EVENT.value: topics.DeviceTopic(DEVICE, topics.Channel.EVENT),
    topics.Channel.ANSWER.value: topics.DeviceTopic(DEVICE, topics.Channel.ANSWER),
    "want": topics.WantTopic(bundle.digest(FILE)),
}


def tell_fleet(data: bytes) -> None:
    """Nothing that a device says is more than one malformed message: the fleet counts it, and its database takes it."""
    stage = _stage()
    try:
        with stage.ledger.transaction():
            for topic in TOPICS.values():
                stage.fleet.received(topic, data)
            raise _RolledBack
    except _RolledBack:
        pass
    finally:
        stage.fleet.moved()
        stage.said.messages.clear()
        stage.said.in_transaction.clear()


@once
def fleet_seeds() -> list[bytes]:
    rollout = _stage().ledger.rollouts(running=True)[0]
    outcome = messages.OutcomeReported(release=rollout.release, rollout=rollout.id, wave=0, good=True, reason="fine")
    step = messages.StepReached(release=rollout.release, step=messages.Step.ACCEPTED, rollout=rollout.id)
    bodies: tuple[messages.EventBody, ...] = (outcome, step)
    more = [messages.Event(id=EventId("n"), device=DEVICE, at=1.0, body=body) for body in bodies]
    return [*message_seeds(), *map(messages.encode, more)]


# -- topics, URLs ------------------------------------------------------------------------------------------------------


@once
def topic_seeds() -> list[bytes]:
    sha256 = bundle.digest(b"x")
    known: list[topics.Topic] = [
        *(topics.DeviceTopic(DEVICE, channel) for channel in topics.Channel),
        topics.ControllerTopic(),
        topics.TrustTopic("release-digits"),
        topics.WantTopic(sha256),
        topics.ChunkTopic(sha256, 17),
    ]
    return [topics.build(FLEET, topic).encode() for topic in known]


def parse_topic(data: bytes) -> None:
    found = topics.parse(FLEET, _text(data))

    built = topics.build(FLEET, found)
    assert topics.parse(FLEET, built) == found
    assert built.count("/") <= 7


def parse_url(data: bytes) -> None:
    found = parse_broker_url(_text(data))

    assert found.host
    assert 0 < found.port < 65536


def _text(data: bytes) -> str:
    """Text as MQTT libraries hand it over: UTF-8 that holds."""
    return data.decode("utf-8", "replace")


# -- assignments -------------------------------------------------------------------------------------------------------


@cache
def _keys() -> tuple[CryptoSigner, assignment.AssignmentKeys]:
    signer = CryptoSigner.generate_ed25519()
    return signer, assignment.AssignmentKeys(keys={signer.public_key.keyid: signer.public_key.to_dict()})


@once
def assignment_seeds() -> list[bytes]:
    activation = Activation(windows=(MaintenanceWindow(start_minute=60, minutes=90),), consent=True, trial=Trial())
    watch = Watch(rollout=RolloutId("r-1"), wave=1, window_s=10.0, window_max_s=20.0, activation=activation)
    made = Assignment(
        fleet=FLEET,
        device=DEVICE,
        counter=3,
        issued_at=1.0,
        expires_at=9.0,
        models=(ModelAssignment(release=release(1), watch=watch),),
    )
    return [msgspec.json.encode(made)]


@once
def envelope_seeds() -> list[bytes]:
    made = assignment.parse(assignment_seeds()[0])
    return [assignment.sign(made, _keys()[0]), assignment.encode_keys(_keys()[1]), *assignment_seeds()]


def parse_assignment(data: bytes) -> None:
    """As it stands after its signature holds: whoever has the key may be mad, and is understood or refused."""
    found = assignment.parse(data)

    assert assignment.parse(msgspec.json.encode(found)) == found
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Assignment) == found


def open_assignment(data: bytes) -> None:
    """Only what was signed comes out, however the envelope was bent; keys that are nonsense are no crash."""
    try:
        keys = assignment.parse_keys(data)
    except WireError:
        pass
    else:
        with suppress(*_TRUST):
            assignment.open_signed(envelope_seeds()[0], keys)

    found = assignment.open_signed(data, _keys()[1])

    assert found == assignment.parse(assignment_seeds()[0])


# -- calls -------------------------------------------------------------------------------------------------------------


@once
def call_seeds() -> list[bytes]:
    made = call.Call(
        fleet=FLEET, device=DEVICE, id="c-1", what=call.CallKind.LOGS, lines=50, issued_at=1.0, expires_at=9.0
    )
    return [msgspec.json.encode(made)]


def open_call(data: bytes) -> None:
    """As it stands after its signature holds, and as it comes from anybody; what comes out is a call in its bounds."""
    signer, keys = _keys()
    with suppress(*_TRUST):
        call.open_call(data, keys)

    found = call.open_call(assignment.seal_payload(data, call.PAYLOAD_TYPE, signer), keys)

    assert 0 <= found.lines <= call.LINES_MAX
    assert call.open_call(call.sign_call(found, signer), keys) == found


# -- enrolment ---------------------------------------------------------------------------------------------------------

_TOKEN = enrolment.EnrolmentToken(id="t-1", secret="s" * 43, ca=Sha256("0" * 64))


@once
def enrolment_seeds() -> list[bytes]:
    device = AskingDevice("crane-7")
    request = device.request(1000.0, _TOKEN, labels={"site": "berlin"}, serial="0815")
    body = enrolment.encode(request)
    signed = enrolment.SignedRequest(body=body, signature=b"\x30\x06\x02\x01\x01\x02\x01\x01")
    key = new_key()
    granted = enrolment.Granted(
        certificate=csr(key),
        ca=public_pem(key),
        broker_url="mqtts://broker:8883",
        device_url="https://controller:8443",
        trust_root=b"{}",
        fleet=FLEET,
        labels={"site": "berlin"},
        renew_at=1.0,
        expires_at=2.0,
        server_time=1.0,
    )
    others: list[enrolment.Answer] = [
        enrolment.Waiting(retry_s=5.0, reason="wait", server_time=1.0),
        enrolment.Refused(code="clock", reason="set it", server_time=1.0),
    ]
    return [enrolment.encode(each) for each in (signed, granted, *others)] + [str(_TOKEN).encode()]


def decode_enrolment(data: bytes) -> None:
    refusals: list[WireError] = []
    try:
        token = enrolment.parse_token(data.decode("latin-1"))
        assert enrolment.parse_token(str(token)) == token
    except WireError as error:
        refusals.append(error)
    try:
        answer = enrolment.decode_answer(data)
        assert enrolment.decode_answer(enrolment.encode(answer)) == answer
    except WireError as error:
        refusals.append(error)
    try:
        requests.verify(data)
    except (WireError, RequestInvalid):
        if len(refusals) == 2:
            raise


# -- manifests ---------------------------------------------------------------------------------------------------------


@once
def manifest_seeds() -> list[bytes]:
    x, y = (TensorSpec(name=name, datatype="FP32", shape=(-1, 4)) for name in ("x", "y"))
    s, s_next = (TensorSpec(name=name, datatype="FP32", shape=(-1, 4)) for name in ("s", "s_next"))
    whole = Manifest(
        model=MODEL,
        version="1.2.3-rc1",
        release=7,
        inputs=(x, s),
        outputs=(y, s_next),
        files=(bundle.describe_file("m.onnx", FILE, 1024), bundle.describe_file("golden.npz", b"g")),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("m.onnx",)),),
        golden=Golden(file="golden.npz"),
        labels=("a", "b", "c", "d"),
        serving=Serving(batch_max=4, batches_preferred=(2, 4), state=(StateTensor(input="s", output="s_next"),)),
        slo=Slo(latency_ms_p95=5.0),
        lineage=Lineage(),
    )
    image = (DecodeImage(), Resize(height=8, width=6), Layout(order="NCHW"), Normalise())
    window = (Window(head_bytes=4, middle_bytes=2, tail_bytes=4), Cast(datatype="INT64"), Reshape(shape=(1, -1)))
    series: tuple[tuple[tuple[PrepareStep, ...], TensorSpec, tuple[FinishStep, ...]], ...] = (
        (image, tensor("FP32", -1, 3, 8, 6), (Softmax(), TopK(k=2), Label())),
        (
            (*image[:3], Transpose(axes=(0, 2, 3, 1)), Quantise(scale=0.1, zero_point=3, datatype="INT8")),
            x,
            (Values(),),
        ),
        (window, tensor("INT64", -1, 10), (Slice(axis=0, start=0, stop=2, into="z"), Values(output="z"))),
        ((DecodeWav(rate_hz=8000), FitLength(length=800), Frame(length=80, hop=80)), x, (CtcGreedy(),)),
        (
            (DecodeText(), Tokenise(file="m.onnx", tokens_max=6, ids="x")),
            tensor("INT64", -1, 6),
            (Boxes(boxes="y", scores="y"),),
        ),
    )
    piped = []
    for prepare, wanted, finish in series:
        accepts: tuple[Media, ...] = ("image/png",)
        match prepare[0]:
            case DecodeWav():
                accepts = ("audio/wav",)
            case DecodeText():
                accepts = ("text/plain",)
            case Window():
                accepts = ("application/octet-stream",)
        made = with_pipeline(prepare, (wanted,), finish, (tensor("FP32", -1, 4, name="y"),), accepts)
        piped.append(
            msgspec.structs.replace(
                whole, inputs=made.inputs, outputs=made.outputs, serving=Serving(), pipeline=made.pipeline
            )
        )
    return [bundle.encode_manifest(each) for each in (whole, *piped)]


def parse_manifest(data: bytes) -> None:
    found = bundle.parse_manifest(data)

    assert bundle.parse_manifest(bundle.encode_manifest(found)) == found
    for variant in found.variants:
        found.files_for(variant)


_TRUST = (assignment.AssignmentForged, WireError)
TARGETS = (
    Target("messages", decode_message, message_seeds, bytes_max=MESSAGE_BYTES_MAX + 1),
    Target("fleet", tell_fleet, fleet_seeds, (), bytes_max=MESSAGE_BYTES_MAX + 1),
    Target("topics", parse_topic, topic_seeds, (WireError,), (b"/", b"+", b"#", b"device", b"release", b"0", b"twin")),
    Target(
        "broker-url",
        parse_url,
        lambda: (b"mqtt://broker", b"mqtts://anna:p%40ss@[::1]:8883/"),
        (BrokerUrlInvalid,),
        (b"mqtt://", b"mqtts://", b"@", b":", b"[", b"]", b"%", b"%ff", b"/", b"?", b"#", b"65536", "℀".encode()),
        bytes_max=4096,
    ),
    Target("assignment", parse_assignment, assignment_seeds, (WireError,)),
    Target("assignment-envelope", open_assignment, envelope_seeds, _TRUST),
    Target("call", open_call, call_seeds, _TRUST),
    Target("enrolment", decode_enrolment, enrolment_seeds, (WireError, RequestInvalid), bytes_max=32 * 1024),
    Target("manifest", parse_manifest, manifest_seeds, (bundle.ManifestInvalid,), bytes_max=512 * 1024),
)
