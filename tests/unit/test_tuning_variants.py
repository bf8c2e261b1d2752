"""Which variants a device fetches and chooses from."""

import msgspec
import pytest

from muster_shared.bundle import Golden, HardwareMatch, Manifest, Serving, TensorSpec, Variant, describe_file
from muster_shared.ids import ModelName
from muster_shared.messages import Hardware
from muster_shared.variants import choose, eligible, files_of

DEVICE = Hardware(device_class="pi", arch="aarch64", memory_mb=1000, runtimes=("onnxruntime", "openvino"))


def variant(name: str, *files: str, **need: object) -> Variant:
    fitted = msgspec.structs.replace(HardwareMatch(), **need)
    return Variant(name=name, runtime="onnxruntime", precision="fp32", files=files, hardware=fitted)


def manifest(selection: str) -> Manifest:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    return Manifest(
        model=ModelName("m"),
        version="1.0.0",
        release=1,
        inputs=(tensor,),
        outputs=(tensor,),
        files=tuple(describe_file(path, path.encode()) for path in ("a", "b", "c", "shared", "golden")),
        variants=(
            variant("x86", "a", arch=("x86_64",)),
            variant("first", "b", "shared"),
            variant("large", "a", memory_mb_min=2000),
            variant("second", "c", "shared", arch=("aarch64",)),
        ),
        golden=Golden(file="golden"),
        serving=Serving(selection=selection),  # type: ignore[arg-type]  # A test's parameter.
    )


@pytest.mark.parametrize(("selection", "names"), [("first", ["first"]), ("measured", ["first", "second"])])
def test_a_device_takes_the_first_that_fits_or_measures_all_that_do(selection: str, names: list[str]) -> None:
    found = eligible(manifest(selection), DEVICE)

    assert [each.name for each in found] == names


@pytest.mark.parametrize("selection", ["first", "measured"])
def test_the_controller_and_the_device_agree_on_whether_any_fits(selection: str) -> None:
    for runtimes in ((), ("onnxruntime",)):
        hardware = msgspec.structs.replace(DEVICE, runtimes=runtimes)

        assert (choose(manifest(selection), hardware) is None) == (eligible(manifest(selection), hardware) == ())


def test_the_files_of_several_variants_are_fetched_once_each() -> None:
    both = eligible(manifest("measured"), DEVICE)

    assert [file.path for file in files_of(manifest("measured"), both)] == ["b", "shared", "golden", "c"]
    assert files_of(manifest("measured"), ()) == ()
