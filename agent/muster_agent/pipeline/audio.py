"""Sound steps: a bounded WAV reader, resampling by libsoxr, and framing.

The standard library's `wave` reads neither floats nor the extensible header that many recorders write.
"""

import struct

import numpy as np
import numpy.typing as npt

from muster_agent.pipeline.value import Context, PipelineMissing, PrepareOperation, Unfit
from muster_shared import pipeline as p
from muster_shared.pipeline_prepare import frame_rows
from muster_shared.pipeline_types import ELEMENTS_MAX

Samples = npt.NDArray[np.float32]

CHANNELS_MAX = 16
RATE_HZ_MAX = 384_000
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # wFormatTag, RFC 2361 and Microsoft's WAVEFORMATEXTENSIBLE.
OPEN_ENDED = 0xFFFFFFFF  # What a recorder writes as length when it streams.


def decode(step: p.DecodeWav) -> PrepareOperation:
    """Return the operation of `step`. Raises PipelineMissing when it resamples and there is no libsoxr."""
    if step.resample:
        try:
            import soxr
        except ImportError as error:
            raise PipelineMissing("decode_wav", "audio", str(error)) from error

    def operation(value: object, context: Context) -> Samples:
        assert isinstance(value, bytes)
        tag, channels, rate_hz, bits, start, length = _header(value)
        frames = length // (channels * bits // 8)
        seconds = frames / rate_hz
        if not step.seconds_min <= seconds <= step.seconds_max or not frames:
            raise Unfit(f"lasts {seconds:g} seconds; {step.seconds_min:g} to {step.seconds_max:g} are taken")
        if channels > 1 and step.channel == "only":
            raise Unfit(f"has {channels} channels; one is taken")
        if rate_hz != step.rate_hz and not step.resample:
            raise Unfit(f"has {rate_hz} samples a second; {step.rate_hz} are taken")
        samples = _samples(value, tag, bits, start, frames * channels)
        if channels > 1:
            table = samples.reshape(frames, channels)
            samples = table.mean(axis=1) if step.channel == "mix" else np.ascontiguousarray(table[:, 0])
        context.seconds = seconds
        if rate_hz == step.rate_hz:
            return samples
        converted: Samples = soxr.resample(samples, rate_hz, step.rate_hz, quality="HQ")
        if not len(converted):
            raise Unfit(f"has {frames} samples, too few to convert")
        return converted

    return operation


def frame(step: p.Frame) -> PrepareOperation:
    """Return the operation of `step`."""

    def operation(value: object, _: Context) -> Samples:
        assert isinstance(value, np.ndarray)
        rows = frame_rows(len(value), step)
        width = step.context + step.length
        if rows * width > ELEMENTS_MAX:
            raise Unfit(f"gives {rows} rows of {width} samples; the limit is {ELEMENTS_MAX} together")
        needed = (rows - 1) * step.hop + step.length
        padded = np.zeros(step.context + needed, np.float32)
        kept = min(len(value), needed)
        padded[step.context : step.context + kept] = value[:kept]
        windows = np.lib.stride_tricks.sliding_window_view(padded, width)
        return np.ascontiguousarray(windows[:: step.hop][:rows])

    return operation


def _header(raw: bytes) -> tuple[int, int, int, int, int, int]:
    """Return format tag, channels, rate in Hz, bits a sample, the position of the samples and their length in bytes."""
    if raw[:4] != b"RIFF" or raw[8:12] != b"WAVE":
        raise Unfit("is no WAV file")
    form: tuple[int, int, int, int] | None = None
    position = 12
    while position + 8 <= len(raw):
        name, length = struct.unpack_from("<4sI", raw, position)
        position += 8
        if name == b"fmt ":
            form = _format(raw[position : position + length])
        elif name == b"data":
            if form is None:
                raise Unfit("is a damaged WAV file: samples come before their format")
            left = len(raw) - position
            if length != OPEN_ENDED and length > left:
                raise Unfit(f"is a WAV file that was cut off: {left} of {length} bytes")
            return (*form, position, min(length, left))
        position += length + length % 2
    raise Unfit("is a WAV file without samples")


def _format(chunk: bytes) -> tuple[int, int, int, int]:
    if len(chunk) < 16:
        raise Unfit("is a damaged WAV file: its format is too short")
    tag, channels, rate_hz, _, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE and len(chunk) >= 26:
        tag = struct.unpack_from("<H", chunk, 24)[0]
    if (tag, bits) not in {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32), (FLOAT, 64)}:
        raise Unfit(f"is a WAV file of format {tag} with {bits} bits; PCM of 8 to 32 bits and floats are read")
    if not 1 <= channels <= CHANNELS_MAX or not 1 <= rate_hz <= RATE_HZ_MAX or block != channels * bits // 8:
        raise Unfit(f"is a WAV file of {channels} channels at {rate_hz} Hz, which is not read")
    return tag, channels, rate_hz, bits


def _samples(raw: bytes, tag: int, bits: int, start: int, count: int) -> Samples:
    if tag == FLOAT:
        with np.errstate(over="ignore"):  # What overflows is infinite, and refused as such.
            samples = np.frombuffer(raw, f"<f{bits // 8}", count, start).astype(np.float32)
        if not bool(np.isfinite(samples).all()):
            raise Unfit("has samples that are no finite numbers")
        return np.clip(samples, -1, 1, out=samples)
    if bits == 8:
        return (np.frombuffer(raw, np.uint8, count, start).astype(np.float32) - 128) / np.float32(128)
    if bits == 24:
        wide = np.zeros((count, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8, 3 * count, start).reshape(count, 3)
        return wide.view("<i4").reshape(count).astype(np.float32) / np.float32(2**31)
    return np.frombuffer(raw, f"<i{bits // 8}", count, start).astype(np.float32) / np.float32(2 ** (bits - 1))
