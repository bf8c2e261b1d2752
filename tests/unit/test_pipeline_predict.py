"""What a body is, the way of its tensors into a call, and the form of an answer."""

import math

import msgspec
import numpy as np
import pytest

from harness.pipelines import load, manifest, tensor
from muster_agent.pipeline.golden_raw import differs
from muster_agent.pipeline.value import MediaRefused
from muster_agent.serving.predict import Predictor, encode_answer, media_type
from muster_shared import pipeline as p
from muster_shared.pipeline import Media

JPEG, PNG, WAV = b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WAVEfmt "
IMAGES: tuple[Media, ...] = ("image/jpeg", "image/png")
OCTETS: tuple[Media, ...] = ("application/octet-stream",)
TEXT: tuple[Media, ...] = ("text/plain",)
SOUND: tuple[Media, ...] = ("audio/wav",)


@pytest.mark.parametrize(
    ("header", "raw", "accepts", "media"),
    [
        ("image/png", b"", IMAGES, "image/png"),
        (" Image/JPEG ; q=1", b"", IMAGES, "image/jpeg"),
        ("image/jpg", PNG, IMAGES, "image/jpeg"),
        ("audio/x-wav", b"", SOUND, "audio/wav"),
        ("text/plain; charset=UTF-8", b"", TEXT, "text/plain"),
        (None, PNG, IMAGES, "image/png"),
        ("", JPEG, IMAGES, "image/jpeg"),
        ("application/octet-stream", WAV, SOUND, "audio/wav"),
        ("application/x-www-form-urlencoded", JPEG, IMAGES, "image/jpeg"),
        ("application/x-www-form-urlencoded", b"a=b", TEXT, "text/plain"),
        (None, PNG, OCTETS, "application/octet-stream"),
        ("image/png", PNG, OCTETS, "application/octet-stream"),
        ("text/html", b"<p>", OCTETS, "application/octet-stream"),
    ],
)
def test_a_body_is_what_its_header_says_or_what_its_first_bytes_do(
    header: str | None, raw: bytes, accepts: tuple[Media, ...], media: Media
) -> None:
    assert media_type(header, raw, accepts) == media


@pytest.mark.parametrize(
    ("header", "raw", "accepts", "words"),
    [
        ("image/gif", PNG, IMAGES, "the input is image/gif; this model takes image/jpeg or image/png"),
        (None, b"GIF89a", IMAGES, "of no known kind"),
        (None, PNG, TEXT, "of no known kind"),
        ("text/plain; charset=latin-1", b"", TEXT, "the input is text/plain latin-1"),
        ("application/json", b"{}", TEXT, "the input is application/json"),
    ],
)
def test_any_other_body_is_refused(header: str | None, raw: bytes, accepts: tuple[Media, ...], words: str) -> None:
    with pytest.raises(MediaRefused, match=words):
        media_type(header, raw, accepts)


def test_a_prepared_file_becomes_the_arguments_of_a_call() -> None:
    inputs = [tensor("INT32", -1, 4), tensor("INT64", 1, name="sr")]
    steps = (p.Constant(input="sr", shape=(1,), values=(7,)), p.Window(head_bytes=2, tail_bytes=2))
    predictor = Predictor(load(manifest(steps, inputs, accepts=OCTETS)))

    tensors, shapes, rows = predictor.call_arguments(predictor.prepare(b"ab", None))

    assert [bytes(each) for each in tensors] == [  # type: ignore[arg-type]
        np.array([97, 98, 97, 98], "<i4").tobytes(),
        np.array([7], "<i8").tobytes(),
    ]
    assert shapes == ((4,), (1,))
    assert rows == 1


def test_the_rows_of_a_sound_go_as_one_call() -> None:
    steps = (p.DecodeWav(rate_hz=8000), p.Frame(length=2, hop=2))
    predictor = Predictor(load(manifest(steps, [tensor("FP32", -1, 2)], [p.Pool(), p.Values()], accepts=SOUND)))
    form = b"fmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0"

    prepared = predictor.prepare(b"RIFF\0\0\0\0WAVE" + form + b"data\6\0\0\0" + bytes(6), "audio/wav")
    _, shapes, rows = predictor.call_arguments(prepared)
    predictions = predictor.predictions([np.array([[1, 3], [2, 5]], np.float32)], prepared.context)

    assert (shapes, rows) == (((2,),), 2)
    assert predictions == {"values": [1.5, 4.0]}


def test_an_answer_is_json_even_when_the_model_gives_no_numbers() -> None:
    raw = encode_answer("m", "1.0.0", "r-1", {"score": math.nan, "values": [math.inf, 1.0]}, {"release": 3})

    assert msgspec.json.decode(raw) == {
        "model_name": "m",
        "model_version": "1.0.0",
        "id": "r-1",
        "predictions": {"score": None, "values": [None, 1.0]},
        "parameters": {"release": 3},
    }


@pytest.mark.parametrize(
    ("expected", "actual", "problem"),
    [
        ({"a": 1}, {"a": 1.0005, "b": 2}, ""),
        ({"a": 1}, {"a": 1.002}, "predictions.a is 1.002, not 1 within 0.001"),
        ({"a": 1}, {"b": 1}, "predictions has no a"),
        ({"a": [{"b": "x"}]}, {"a": [{"b": "x", "c": 1}]}, ""),
        ({"a": [{"b": "x"}]}, {"a": [{"b": "y"}]}, "predictions.a[0].b is 'y', not 'x'"),
        ({"a": []}, {"a": [1]}, "predictions.a has 1 elements, not 0"),
        ({"a": True}, {"a": 1}, "predictions.a is 1, not True"),
        ({"a": 1}, {"a": math.nan}, "predictions.a is nan, not 1 within 0.001"),
        ({"a": None}, {"a": 0}, "predictions.a is 0, not None"),
        ({"a": {}}, {"a": "x"}, "predictions.a is 'x', not {}"),
    ],
)
def test_a_raw_case_may_expect_any_part_of_an_answer(
    expected: dict[str, object], actual: dict[str, object], problem: str
) -> None:
    assert differs(expected, actual, 1e-3) == problem
