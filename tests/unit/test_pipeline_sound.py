"""WAV files to samples and rows, against what the standard library writes and NumPy computes; and files that lie."""

import io
import struct
import wave

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.pipelines import load, manifest, tensor
from muster_agent.pipeline.value import Prepared, RawRefused
from muster_shared import pipeline as p
from muster_shared.bundle import TensorSpec

RATE = 8000
DECODE = p.DecodeWav(rate_hz=RATE)
TONE = np.sin(np.arange(800) * 0.3).astype(np.float32) * np.float32(0.5)


def wav(samples: npt.NDArray[np.generic], rate: int = RATE, channels: int = 1) -> bytes:
    """Return PCM of the samples' own width, written by the standard library."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(samples.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def riff(form: bytes, data: bytes, length: int | None = None) -> bytes:
    body = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form
    body += b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"data"  # An odd chunk is padded to even.
    body += struct.pack("<I", len(data) if length is None else length) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def form(tag: int, bits: int, channels: int = 1, rate: int = RATE) -> bytes:
    block = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, rate * block, block, bits)


def prepare(raw: bytes, *steps: p.PrepareStep, wanted: TensorSpec | None = None) -> Prepared:
    rank = (-1, -1) if any(isinstance(step, p.Frame) for step in steps) else (-1,)
    each = wanted or tensor("FP32", *rank)
    return load(manifest(steps, [each], accepts=("audio/wav",))).prepare(raw, "audio/wav")


@pytest.mark.parametrize(
    "raw",
    [
        wav((TONE * 32768).astype(np.int16)),
        wav((TONE.astype(np.float64) * 2**31).astype(np.int32)),
        wav((TONE * 128 + 128).astype(np.uint8)),
        riff(form(3, 32), TONE.tobytes()),
        riff(form(3, 64), TONE.astype(np.float64).tobytes()),
        riff(form(0xFFFE, 16) + struct.pack("<HHIH14s", 22, 16, 4, 1, b""), (TONE * 32768).astype("<i2").tobytes()),
        riff(
            form(1, 24), (TONE.astype(np.float64) * 2**31).astype("<i4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
        ),
        riff(form(1, 16), (TONE * 32768).astype("<i2").tobytes(), length=0xFFFFFFFF),
    ],
    ids=["pcm16", "pcm32", "pcm8", "float32", "float64", "extensible", "pcm24", "streamed"],
)
def test_every_sample_format_is_the_same_sound(raw: bytes) -> None:
    prepared = prepare(raw, DECODE)

    samples = prepared.arrays["x"]
    assert samples.dtype == np.float32
    assert len(samples) == 800
    assert np.abs(samples - TONE).max() <= 1 / 64
    assert prepared.context.facts()["seconds"] == 0.1


def test_full_scale_is_minus_one_and_just_below_one() -> None:
    samples = prepare(wav(np.array([-32768, 0, 32767], np.int16)), DECODE).arrays["x"]

    assert samples.tolist() == [-1.0, 0.0, 32767 / 32768]


def test_channels_are_mixed_or_chosen_or_refused() -> None:
    stereo = wav(np.array([[100, 300], [-200, 0]], np.int16), channels=2)

    mixed = prepare(stereo, DECODE).arrays["x"]
    first = prepare(stereo, p.DecodeWav(rate_hz=RATE, channel="first")).arrays["x"]

    assert (mixed * 32768).tolist() == [200, -100]
    assert (first * 32768).tolist() == [100, -200]
    with pytest.raises(RawRefused, match="2 channels; one is taken"):
        prepare(stereo, p.DecodeWav(rate_hz=RATE, channel="only"))


def test_another_rate_is_converted_only_when_the_release_says_so() -> None:
    time_s = np.arange(4800) / 48000
    raw = wav((np.sin(2 * np.pi * 440 * time_s) * 16384).astype(np.int16), rate=48000)

    samples = prepare(raw, p.DecodeWav(rate_hz=RATE, resample=True)).arrays["x"]

    wanted = np.sin(2 * np.pi * 440 * np.arange(800) / RATE) / 2
    assert len(samples) == 800
    assert np.abs(samples - wanted)[50:-50].max() < 2e-3  # The ends have no neighbours to be filtered with.
    with pytest.raises(RawRefused, match="48000 samples a second; 8000 are taken"):
        prepare(raw, DECODE)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "no WAV file"),
        (b"RIFF\0\0\0\0WAVE", "without samples"),
        (wav(np.zeros(0, np.int16)), "lasts 0 seconds"),
        (wav(np.zeros(8000 * 61, np.int16)), "lasts 61 seconds"),
        (wav(np.zeros(800, np.int16))[:-1], "cut off"),
        (riff(form(2, 4), bytes(99)), "format 2 with 4 bits"),
        (riff(form(1, 16, channels=0), bytes(99)), "0 channels"),
        (riff(form(1, 16, rate=0), bytes(99)), "at 0 Hz"),
        (riff(form(1, 16)[:10], bytes(99)), "too short"),
        (riff(form(3, 32), np.array([np.nan], np.float32).tobytes()), "no finite numbers"),
        (b"RIFF\0\0\0\0WAVEdata\4\0\0\0abcd", "samples come before their format"),
    ],
)
def test_what_is_no_sound_is_refused(raw: bytes, words: str) -> None:
    with pytest.raises(RawRefused, match=words):
        prepare(raw, DECODE)


@settings(deadline=None)
@given(raw=st.binary(max_size=200), at=st.integers(0, 60))
def test_no_bytes_make_the_reader_fail_in_any_other_way(raw: bytes, at: int) -> None:
    good = wav(np.zeros(50, np.int16))
    damaged = good[:at] + raw + good[at + len(raw) :]

    try:
        samples = prepare(damaged, DECODE).arrays["x"]
    except RawRefused:
        return

    assert np.isfinite(samples).all()


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    length=st.integers(1, 20),
    hop=st.integers(1, 25),
    context=st.integers(0, 5),
    rest=st.sampled_from(["pad", "drop"]),
)
def test_rows_are_consecutive_windows_with_what_came_before_them(
    count: int, length: int, hop: int, context: int, rest: str
) -> None:
    sound = np.arange(1, count + 1, dtype=np.int16)

    rows = prepare(
        wav(sound),
        DECODE,
        p.Frame(length=length, hop=hop, context=context, rest=rest),  # type: ignore[arg-type]
    ).arrays["x"]

    starts = [start for start in range(0, count, hop) if rest == "pad" or start + length <= count or start == 0]
    # With padding, a row is only begun when the one before it has not reached the end.
    starts = [start for start in starts if start == 0 or start - hop + length < count]
    padded = np.concatenate((np.zeros(context), sound, np.zeros(length + hop)))
    wanted = np.stack([padded[start : start + context + length] for start in starts])
    np.testing.assert_array_equal(rows * 32768, wanted)


@pytest.mark.parametrize(
    ("at", "length", "wanted"),
    [("end", 5, [1, 2, 3, 0, 0]), ("start", 5, [0, 0, 1, 2, 3]), ("end", 2, [1, 2]), ("start", 2, [2, 3])],
)
def test_a_sound_is_padded_or_cut_to_a_length(at: str, length: int, wanted: list[int]) -> None:
    step = p.FitLength(length=length, at=at)  # type: ignore[arg-type]

    samples = prepare(wav(np.array([1, 2, 3], np.int16)), DECODE, step, wanted=tensor("FP32", -1, length)).arrays["x"]

    assert (samples[0] * 32768).tolist() == wanted


def test_rows_that_would_fill_the_memory_are_refused() -> None:
    with pytest.raises(RawRefused, match=r"step 2 \(frame\): it gives 472001 rows"):
        prepare(wav(np.zeros(8000 * 60, np.int16)), DECODE, p.Frame(length=8000, hop=1))
