"""Where releases serve, by the devices' own reports."""

from types import MappingProxyType

from muster_controller.db.snapshot import Committed
from muster_controller.ports import Device
from muster_controller.served import KEPT_S, LABEL_VALUES_MAX, Served, use_of
from muster_shared.ids import DeviceId, ModelName, Sha256
from muster_shared.messages import Hardware, ReleaseRef, Tuning, Twin, TwinModel

MODEL = ModelName("digits")


def release(version: str, number: int = 1) -> ReleaseRef:
    return ReleaseRef(model=MODEL, version=version, release=number, bundle_sha256=Sha256("0" * 64), bundle_length=10)


def tuning(variant: str, rows_per_s: float = 100.0, fallback: str = "") -> Tuning:
    return Tuning(
        variant=variant,
        engine="onnxruntime 1.23",
        device="CPU",
        precision="fp32",
        threads=2,
        instances=1,
        batch_max=1,
        rows_per_s=rows_per_s,
        latency_ms_p95=4.0,
        fallback=fallback,
    )


def device(name: str, model: TwinModel | None, device_class: str = "pi5", online: bool = True, **labels: str) -> Device:
    twin = Twin(
        device=DeviceId(name),
        sent_at=0.0,
        boot="b",
        sequence=1,
        agent_version="1",
        counter=1,
        hardware=Hardware(device_class=device_class, arch="aarch64"),
        labels=labels,
        models=() if model is None else (model,),
    )
    return Device(DeviceId(name), online=online, twin=twin)


def serving(version: str, p95: float | None = None, chosen: Tuning | None = None) -> TwinModel:
    return TwinModel(
        model=MODEL, phase="idle", active=release(version), latency_ms_p95=p95, tuning=chosen, requests=10, errors=1
    )


def committed(*devices: Device) -> Committed:
    return Committed(MappingProxyType({each.id: each for each in devices}), {}, {}, {})


def test_devices_of_one_class_and_variant_are_one_line_with_the_middle_and_the_slowest() -> None:
    fleet = committed(
        device("a", serving("1.0.0", 5.0, tuning("int8", 90.0))),
        device("b", serving("1.0.0", 9.0, tuning("int8", 110.0, "no NPU"))),
        device("c", serving("1.0.0", 30.0, tuning("int8", 100.0))),
        device("d", serving("1.0.0", 2.0, tuning("fp32")), "nuc"),
        device("e", serving("2.0.0", 1.0, tuning("fp32")), "nuc"),
    )

    nuc, pi = use_of(fleet, MODEL, "1.0.0").picks
    assert (nuc.device_class, nuc.variant, nuc.devices, nuc.latency_ms_p95) == ("nuc", "fp32", 1, 2.0)
    assert (pi.devices, pi.latency_ms_p95, pi.worst_ms_p95, pi.rows_per_s) == (3, 9.0, 30.0, 100.0)
    assert (pi.requests, pi.errors, pi.fell_back, pi.why) == (30, 3, 1, "no NPU")


def test_what_no_agent_tells_is_unknown_and_not_zero() -> None:
    (pick,) = use_of(committed(device("a", serving("1.0.0"))), MODEL, "1.0.0").picks

    assert (pick.variant, pick.latency_ms_p95, pick.rows_per_s) == ("", None, None)


def test_classes_and_labels_are_counted_the_largest_first_and_names_of_single_devices_left_out() -> None:
    fleet = [
        device(f"d{n}", serving("1.0.0"), "nuc" if n else "pi5", site="oslo" if n % 3 else "bergen", serial=f"s{n}")
        for n in range(LABEL_VALUES_MAX + 1)
    ]

    use = use_of(committed(*fleet), MODEL, "1.0.0")

    assert list(use.classes.items()) == [("nuc", LABEL_VALUES_MAX), ("pi5", 1)]
    assert list(use.labels) == ["site"]
    assert list(use.labels["site"]) == ["oslo", "bergen"]


def test_a_release_in_standby_is_ready_and_does_not_serve() -> None:
    both = TwinModel(model=MODEL, phase="idle", active=release("2.0.0", 2), standby=release("1.0.0"))

    fleet = committed(device("a", both, online=False), device("b", None))
    before, after = use_of(fleet, MODEL, "1.0.0"), use_of(fleet, MODEL, "2.0.0")

    assert (before.devices, before.standby) == (0, 1)
    assert (after.devices, after.online, after.standby) == (1, 0, 0)


def test_the_answer_is_kept_for_a_moment_or_until_the_fleet_is_another() -> None:
    served, before = Served(), committed(device("a", serving("1.0.0")))
    after = committed(device("a", serving("2.0.0")))

    first = served.of(before, MODEL, "1.0.0", 0.0)
    same_fleet = served.of(before, MODEL, "1.0.0", 100.0)
    at_once = served.of(after, MODEL, "1.0.0", 1.0)
    later = served.of(after, MODEL, "1.0.0", KEPT_S + 1.0)

    assert first is same_fleet is at_once
    assert (first.devices, later.devices) == (1, 0)
