"""Image steps against Pillow and NumPy used directly, as a training script does; and images that are not images."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from harness.pipelines import load, manifest, tensor
from muster_agent.pipeline.value import MediaRefused, Prepared, RawRefused
from muster_shared import pipeline as p

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def photo(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    """Return a smooth picture: what a JPEG keeps."""
    coarse = np.random.default_rng(7).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def prepare(raw: bytes, *steps: p.PrepareStep, media: str = "image/png") -> Prepared:
    """Return what `steps` make of `raw`, as a tensor of any shape."""
    last = steps[-1]
    layout = () if isinstance(last, p.Layout | p.Normalise | p.Cast | p.Quantise) else (p.Layout(order="NHWC"),)
    datatype = {p.Normalise: "FP32", p.Quantise: "INT8"}.get(type(last), "UINT8")
    wanted = tensor(datatype, -1, -1, -1, -1)
    return load(manifest((*steps, *layout), [wanted])).prepare(raw, media)


def pixels(raw: bytes, *steps: p.PrepareStep) -> npt.NDArray[np.uint8]:
    return prepare(raw, *steps).arrays["x"][0]  # type: ignore[return-value]


def test_the_usual_preparation_for_imagenet_is_that_of_the_training_script_to_the_last_bit() -> None:
    raw = encode(photo(), "JPEG")
    steps = (p.DecodeImage(), p.ResizeShorter(side=32), p.Crop(height=28, width=28), p.Layout(order="NCHW"))

    actual = prepare(raw, *steps, p.Normalise(mean=MEAN, std=STD), media="image/jpeg").arrays["x"]

    # torchvision: Resize(32), CenterCrop(28), ToTensor(), Normalize(mean, std).
    image = Image.open(io.BytesIO(raw)).resize((32 * 64 // 48, 32), Image.Resampling.BILINEAR)
    left = round((image.width - 28) / 2)
    image = image.crop((left, 2, left + 28, 30))
    scaled = np.asarray(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    mean, std = (np.array(each, np.float32).reshape(3, 1, 1) for each in (MEAN, STD))
    np.testing.assert_array_equal(actual, ((scaled - mean) / std)[np.newaxis])


@pytest.mark.parametrize(
    ("name", "filter_"),
    [
        ("nearest", Image.Resampling.NEAREST),
        ("bilinear", Image.Resampling.BILINEAR),
        ("bicubic", Image.Resampling.BICUBIC),
        ("area", Image.Resampling.BOX),
        ("lanczos", Image.Resampling.LANCZOS),
    ],
)
def test_each_filter_is_pillows(name: str, filter_: Image.Resampling) -> None:
    image = photo()

    actual = pixels(encode(image), p.DecodeImage(), p.Resize(height=20, width=30, filter=name))  # type: ignore[arg-type]

    np.testing.assert_array_equal(actual, np.asarray(image.resize((30, 20), filter_)))


def test_area_is_the_mean_of_whole_blocks() -> None:
    image = photo(64, 48, "L")

    actual = pixels(
        encode(image),
        p.DecodeImage(colour="GRAY"),
        p.Resize(height=6, width=8, filter="area"),
        p.Layout(order="NHWC", colour="GRAY"),
    )

    blocks = np.asarray(image).reshape(6, 8, 8, 8).astype(np.float64).mean(axis=(1, 3))
    assert np.abs(actual[..., 0] - blocks).max() <= 1.0  # Pillow rounds twice: after its rows and after its columns.


@pytest.mark.parametrize("size", [(20, 30), (96, 100), (7, 5)])
def test_without_antialias_a_pixel_is_sampled_at_its_centre(size: tuple[int, int]) -> None:
    image = photo(mode="L")
    height, width = size

    actual = pixels(
        encode(image),
        p.DecodeImage(colour="GRAY"),
        p.Resize(height=height, width=width, antialias=False),
        p.Layout(order="NHWC", colour="GRAY"),
    )

    # cv2.INTER_LINEAR and torch's bilinear: source = (target + 0.5) x scale - 0.5, edges repeated.
    source = np.asarray(image).astype(np.float64)
    y = np.clip((np.arange(height) + 0.5) * 48 / height - 0.5, 0, 47)
    x = np.clip((np.arange(width) + 0.5) * 64 / width - 0.5, 0, 63)
    y0, x0 = np.minimum(y.astype(int), 46), np.minimum(x.astype(int), 62)
    fy, fx = (y - y0)[:, None], (x - x0)[None]
    corner = [[source[np.ix_(y0 + dy, x0 + dx)] for dx in (0, 1)] for dy in (0, 1)]
    wanted = (corner[0][0] * (1 - fx) + corner[0][1] * fx) * (1 - fy) + (
        corner[1][0] * (1 - fx) + corner[1][1] * fx
    ) * fy
    assert np.abs(actual[..., 0] - wanted).max() <= 1.01


def test_a_letterbox_keeps_the_aspect_ratio_and_fills_the_rest() -> None:
    image = photo(64, 32)

    actual = pixels(encode(image), p.DecodeImage(), p.Letterbox(height=20, width=20, fill=9))

    np.testing.assert_array_equal(actual[5:15], np.asarray(image.resize((20, 10), Image.Resampling.BILINEAR)))
    assert np.unique(np.concatenate((actual[:5], actual[15:]))).tolist() == [9]


def test_bgr_is_rgb_backwards_in_both_layouts() -> None:
    image = np.asarray(photo())
    raw = encode(photo())

    rows = prepare(raw, p.DecodeImage(), p.Layout(order="NHWC", colour="BGR")).arrays["x"]
    planes = prepare(raw, p.DecodeImage(), p.Layout(order="NCHW", colour="BGR")).arrays["x"]

    np.testing.assert_array_equal(rows[0], image[:, :, ::-1])
    np.testing.assert_array_equal(planes[0], image[:, :, ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_kind_of_png_becomes_what_pillow_converts_it_to(mode: str) -> None:
    image = photo().convert(mode)

    grey = pixels(encode(image), p.DecodeImage(colour="GRAY"), p.Layout(order="NHWC", colour="GRAY"))
    colour = pixels(encode(image), p.DecodeImage())

    np.testing.assert_array_equal(grey[..., 0], np.asarray(image.convert("L")))
    np.testing.assert_array_equal(colour, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_upright_as_its_camera_says(orientation: int) -> None:
    upright = photo(24, 16)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns: dict[int, Sequence[Image.Transpose]] = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],  # Stored turned the other way, so that a quarter clockwise makes it upright.
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for turn in turns.get(orientation, ()):
        stored = stored.transpose(turn)

    actual = prepare(encode(stored, exif=exif), p.DecodeImage())

    np.testing.assert_array_equal(actual.arrays["x"][0], np.asarray(upright))
    assert actual.context.facts() == {
        "content_type": "image/png",
        "bytes": len(encode(stored, exif=exif)),
        "width": 24,
        "height": 16,
    }


def test_invert_makes_black_of_white() -> None:
    image = photo()

    actual = pixels(encode(image), p.DecodeImage(), p.Invert())

    np.testing.assert_array_equal(actual, 255 - np.asarray(image))


def test_a_region_is_cut_in_shares_of_the_view() -> None:
    image = photo(64, 48)

    actual = pixels(encode(image), p.DecodeImage(), p.Region(left=0.25, top=0.5, right=0.75, bottom=1.0))

    np.testing.assert_array_equal(actual, np.asarray(image)[24:, 16:48])


def test_a_draft_is_decoded_smaller_and_looks_the_same() -> None:
    raw = encode(photo(640, 480), "JPEG", quality=95)
    resize = p.Resize(height=56, width=56)

    exact = prepare(raw, p.DecodeImage(), resize, media="image/jpeg")
    draft = prepare(raw, p.DecodeImage(draft=True), resize, media="image/jpeg")

    difference = np.abs(exact.arrays["x"].astype(int) - draft.arrays["x"].astype(int))
    assert 0 < difference.mean() < 2
    assert draft.context.view == exact.context.view


def test_a_draft_of_a_turned_photo_is_as_small_as_that_of_an_upright_one() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    raw = encode(photo(480, 640), "JPEG", exif=exif)

    actual = prepare(raw, p.DecodeImage(draft=True), p.Resize(height=50, width=300), media="image/jpeg")

    half = Image.open(io.BytesIO(raw))
    half.draft(None, (50, 300))  # As stored, before it is turned.
    wanted = half.transpose(Image.Transpose.ROTATE_270).resize((300, 50), Image.Resampling.BILINEAR)
    assert half.size == (240, 320)
    np.testing.assert_array_equal(actual.arrays["x"][0], np.asarray(wanted))


def test_channels_are_followed_through_a_transpose() -> None:
    raw = encode(photo())
    normalise = p.Normalise(mean=MEAN, std=STD)

    planes = prepare(raw, p.DecodeImage(), p.Layout(order="NCHW"), normalise)
    turned = prepare(raw, p.DecodeImage(), p.Layout(order="NHWC"), p.Transpose(axes=(0, 3, 1, 2)), normalise)

    np.testing.assert_array_equal(turned.arrays["x"], planes.arrays["x"])


def test_quantised_inputs_are_clipped_and_rounded_half_to_even() -> None:
    image = Image.fromarray(np.array([[0, 1, 3, 127, 255]], np.uint8))

    actual = prepare(
        encode(image),
        p.DecodeImage(colour="GRAY"),
        p.Layout(order="NCHW", colour="GRAY"),
        p.Quantise(scale=2.0, zero_point=3, datatype="INT8"),
    ).arrays["x"]

    assert actual.dtype == np.int8
    assert actual.reshape(-1).tolist() == [3, 3, 5, 67, 127]  # 0.5 -> 0, 1.5 -> 2, 63.5 -> 64, 127.5 + 3 clipped.


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of a few bytes that claims to be huge."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("raw", "step", "words"),
    [
        (b"", p.DecodeImage(), "no readable image/png"),
        (b"\x89PNG\r\n\x1a\n", p.DecodeImage(), "no readable image/png"),
        (b"GIF89a" + bytes(99), p.DecodeImage(), "no readable image/png"),
        (encode(photo())[:-300], p.DecodeImage(), "a damaged image/png"),
        (encode(photo()), p.DecodeImage(bytes_max=100), "the limit is 100"),
        (encode(photo()), p.DecodeImage(pixels_max=3071), "64 x 48 pixels; the limit is 3071"),
        (bomb(50_000, 50_000), p.DecodeImage(), "no readable image/png"),
        (bomb(9_000, 9_000), p.DecodeImage(), "9000 x 9000 pixels; the limit is 25000000"),
        (encode(photo(), "JPEG"), p.DecodeImage(), "no readable image/png"),
        (encode(Image.fromarray(np.zeros((2, 2), np.uint16))), p.DecodeImage(), "mode I;16"),
    ],
)
def test_what_is_no_image_is_refused_by_the_decoding_step(raw: bytes, step: p.DecodeImage, words: str) -> None:
    with pytest.raises(RawRefused, match=words) as refused:
        prepare(raw, step)

    assert (refused.value.number, refused.value.step) == (1, "decode_image")


def test_a_thread_of_an_image_is_refused_before_its_longer_side_fills_the_memory() -> None:
    raw = encode(Image.new("L", (200_000, 1)))

    with pytest.raises(RawRefused, match=r"step 2 \(resize_shorter\): it would be resized to 200000000 x 1000"):
        prepare(raw, p.DecodeImage(), p.ResizeShorter(side=1000))


def test_a_kind_of_file_that_the_release_does_not_accept_is_not_even_looked_at() -> None:
    pipeline = load(manifest((p.DecodeImage(), p.Layout(order="NHWC")), [tensor("UINT8", -1, -1, -1, 3)]))

    with pytest.raises(MediaRefused, match="the input is image/gif; this model takes image/png or image/jpeg"):
        pipeline.prepare(b"GIF89a", "image/gif")


def test_broken_camera_notes_do_not_make_a_photo_unreadable() -> None:
    raw = encode(photo(), "JPEG", exif=b"Exif\0\0" + b"MM\0*" + b"\xff" * 40)

    assert prepare(raw, p.DecodeImage(), media="image/jpeg").arrays["x"].shape == (1, 48, 64, 3)


def test_the_pixels_of_one_request_are_never_those_of_another() -> None:
    pipeline = load(manifest((p.DecodeImage(), p.Layout(order="NHWC")), [tensor("UINT8", -1, -1, -1, 3)]))

    first = pipeline.prepare(encode(photo()), "image/png")
    second = pipeline.prepare(encode(photo()), "image/png")

    assert not np.shares_memory(first.arrays["x"], second.arrays["x"])
