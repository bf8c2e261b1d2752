"""What the pages of models and keys say: lineage, comparison, lifetimes, places."""

from muster_controller.api.release_views import card_lines, comparison
from muster_controller.api.schemas.releases import (
    DeviceCertificates,
    DeviceExpiry,
    ExpiryBin,
    LatencyChange,
    VersionUse,
)
from muster_controller.served import Pick, Use
from muster_controller.web.key_present import expiry_plot
from muster_controller.web.lifetimes import DAY_S, lifetime, of_metadata
from muster_controller.web.lineage import Ancestry, lineage
from muster_controller.web.model_present import class_places, label_places, latency_plot
from muster_shared.bundle import Golden, Manifest, Slo, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName

NOW = 1_800_000_000.0


def manifest(version: str, release: int, weights: bytes, **more: object) -> Manifest:
    return Manifest(
        model=ModelName("digits"),
        version=version,
        release=release,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
        files=(describe_file("model.onnx", weights), describe_file("golden.npz", b"golden")),
        variants=(Variant(name="any", runtime="onnxruntime", precision="fp32", files=("model.onnx",)),),
        golden=Golden(file="golden.npz"),
        **more,  # type: ignore[arg-type]  # Fields of a manifest, as the tests name them.
    )


# -- lineage -------------------------------------------------------------------------------------------------------


def test_a_parent_is_found_however_the_publisher_wrote_it_and_strangers_stand_at_the_left() -> None:
    graph = lineage(
        "digits",
        [
            Ancestry("1.0.0", 1, ("mnist-base 0.3",)),
            Ancestry("1.1.0", 2, ("digits 1.0.0",)),
            Ancestry("2.0.0", 3, ("models/digits/1.1.0", "1.0.0")),
        ],
    )

    assert graph is not None
    assert set(graph.edges) == {
        ("mnist-base 0.3", "1.0.0", ""),
        ("1.0.0", "1.1.0", ""),
        ("1.1.0", "2.0.0", ""),
        ("1.0.0", "2.0.0", ""),
    }
    assert {node.id: node.column for node in graph.nodes} == {"mnist-base 0.3": 0, "1.0.0": 1, "1.1.0": 2, "2.0.0": 3}
    assert next(node.href for node in graph.nodes if node.id == "mnist-base 0.3") == ""


def test_releases_that_name_each_other_as_parents_are_drawn_all_the_same() -> None:
    graph = lineage("digits", [Ancestry("1.0.0", 1, ("1.1.0",)), Ancestry("1.1.0", 2, ("1.0.0", "1.1.0"))])

    assert graph is not None
    assert len(graph.nodes) == 2


def test_without_parents_there_is_no_graph() -> None:
    assert lineage("digits", [Ancestry("1.0.0", 1, ()), Ancestry("1.1.0", 2, ())]) is None


# -- two releases --------------------------------------------------------------------------------------------------


def pick(name: str, p95: float | None, devices: int = 1, variant: str = "any") -> Pick:
    return Pick(name, variant, "onnxruntime", "CPU", "fp32", 1, devices, p95, p95, None, None, 0, 0, 0, 0, "")


def test_two_releases_are_compared_by_claims_files_and_speed() -> None:
    old = manifest("1.0.0", 1, b"old", slo=Slo(latency_ms_p95=20), card="# 1\nsame")
    new = manifest("2.0.0", 2, b"newer", slo=Slo(latency_ms_p95=10), labels=("a", "b"), card="# 2\nsame")
    was = Use(devices=3, classes={"pi5": 3}, picks=(pick("pi5", 8.0, 2), pick("pi5", 20.0, 1, "int8")))
    now = Use(devices=1, classes={"nuc": 1}, picks=(pick("nuc", None),))

    found = comparison("digits", (old, new), was, now)

    assert (found.bytes_before, found.bytes_after, found.bytes_shared) == (9, 11, 6)
    assert [(each.path, each.is_same) for each in found.files] == [("model.onnx", False), ("golden.npz", True)]
    differing = {each.name: (each.before, each.after) for each in found.facts if not each.is_same}
    assert differing["latency p95 below"] == ("20 ms", "10 ms")
    assert differing["names of classes"] == ("", "2 new, 0 gone")
    nuc, pi = found.latency
    assert (nuc.before_ms, nuc.after_ms, nuc.devices_after) == (None, None, 1)
    assert (pi.before_ms, pi.variants_before, pi.devices_after) == (8.0, ["any", "int8"], 0)


def test_only_what_differs_of_a_card_is_shown_with_a_little_around_it() -> None:
    before = "\n".join(f"line {number}" for number in range(20))

    found = card_lines(before, before.replace("line 9\n", "line nine\n"))

    assert [(line.mark, line.text) for line in found] == [
        ("left", "7"),
        ("same", "line 7"),
        ("same", "line 8"),
        ("gone", "line 9"),
        ("new", "line nine"),
        ("same", "line 10"),
        ("same", "line 11"),
        ("left", "8"),
    ]
    assert card_lines(before, before) == []


def test_latency_that_nobody_told_has_no_bar() -> None:
    def row(name: str, before: float | None, after: float | None) -> LatencyChange:
        return LatencyChange(
            device_class=name,
            devices_before=1,
            devices_after=1,
            before_ms=before,
            after_ms=after,
            variants_before=[],
            variants_after=[],
        )

    plot = latency_plot([row("a", 5.0, None), row("b", None, None)], "1.0.0", "2.0.0")

    assert list(plot.names) == ["a"]
    assert [list(each.points) for each in plot.series] == [[(0.0, 5.0)], [(0.0, None)]]
    assert "a 5 ms to unknown" in plot.words


# -- where it runs -------------------------------------------------------------------------------------------------


def test_each_group_leads_to_its_devices() -> None:
    use = VersionUse(
        model="digits",
        version="1.0.0",
        devices=3,
        online=3,
        standby=0,
        classes={"Pi 5 (4 GB)": 3},
        labels={"site": {"oslo": 2, "bergen": 1}},
        picks=[],
    )

    (place,) = class_places(use)
    (label,) = label_places(use)

    assert place.href == "/devices?selector=hw%2Fclass%3DPi-5--4-GB&model=digits&version=1.0.0"
    assert [each.href.split("&")[0] for each in label.places] == [
        "/devices?selector=site%3Doslo",
        "/devices?selector=site%3Dbergen",
    ]


# -- lifetimes -----------------------------------------------------------------------------------------------------


def test_what_runs_out_is_said_as_early_as_its_alert() -> None:
    assert of_metadata("targets", NOW + 200 * DAY_S, NOW).state == "good"
    assert of_metadata("targets", NOW + 20 * DAY_S, NOW).state == "soon"
    assert of_metadata("targets", NOW + 2 * DAY_S, NOW).state == "late"
    assert of_metadata("targets", NOW - DAY_S, NOW).state == "over"


def test_what_renews_itself_is_late_only_when_it_was_not_renewed() -> None:
    assert of_metadata("timestamp", NOW + 12 * 3600, NOW).state == "good"
    assert of_metadata("timestamp", NOW + 2 * 3600, NOW).state == "late"
    assert lifetime("mixer", "m", NOW + 3 * DAY_S, 7 * DAY_S, NOW).state == "good"


def test_the_meter_shows_the_share_of_the_life_that_is_left() -> None:
    assert lifetime("page", "p", NOW + 15 * DAY_S, 30 * DAY_S, NOW).share == 0.5
    assert of_metadata("root", NOW - 5, NOW).share == 0.0


def test_the_days_of_devices_certificates_have_names_and_the_last_is_open() -> None:
    days = [ExpiryBin(begins_at=NOW + step * DAY_S, devices=step) for step in range(3)]
    soonest = [DeviceExpiry(device="a", expires_at=NOW)]

    plot = expiry_plot(DeviceCertificates(valid=3, lapsed=0, revoked=0, days=days, soonest=soonest))

    assert list(plot.names) == ["15 Jan", "16 Jan", "17 Jan or later"]
    assert [y for _, y in plot.series[0].points] == [0.0, 1.0, 2.0]
    assert "around 17 Jan or later" in plot.words
