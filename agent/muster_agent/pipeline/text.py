"""Text steps: strict decoding, and tokenising with the bundle's own tokenizer file.

The library would also fetch tokenizers by name; here it is only ever given the bytes of a verified file.
"""

import unicodedata
from pathlib import Path

import numpy as np

from muster_agent.engines.port import Array
from muster_agent.engines.tensors import DTYPES
from muster_agent.pipeline.value import Context, PipelineMissing, PipelineUnloadable, PrepareOperation, Unfit
from muster_shared import pipeline as p


def decode(step: p.DecodeText) -> PrepareOperation:
    """Return the operation of `step`."""

    def operation(value: object, context: Context) -> str:
        assert isinstance(value, bytes)
        if len(value) > step.bytes_max:
            raise Unfit(f"has {len(value)} bytes; the limit is {step.bytes_max}")
        try:
            text = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Unfit(f"is not UTF-8 (byte {error.start})") from error
        if step.form:
            text = unicodedata.normalize(step.form, text)
        if step.strip:
            text = text.strip()
        context.characters = len(text)
        return text

    return operation


def strings(value: object, _: Context) -> Array:
    """The operation of `strings`: BYTES [1]."""
    assert isinstance(value, str)
    out = np.empty(1, dtype=object)
    out[0] = value.encode()
    return out


def tokenise(step: p.Tokenise, folder: Path) -> PrepareOperation:
    """Return the operation of `step`; the tokenizer is read once, from `folder`.

    Raises:
        PipelineMissing: the library is not installed.
        PipelineUnloadable: the file is none, or lacks the padding token.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise PipelineMissing("tokenise", "text", str(error)) from error
    try:
        tokenizer = Tokenizer.from_buffer((folder / step.file).read_bytes())
        tokenizer.enable_truncation(step.tokens_max)
        if step.pad:
            pad = tokenizer.token_to_id(step.pad_token)
            if pad is None:
                raise PipelineUnloadable(f"{step.file} has no token {step.pad_token!r}")
            tokenizer.enable_padding(length=step.tokens_max, pad_id=pad, pad_token=step.pad_token)
        else:
            tokenizer.no_padding()
        tokenizer.encode("a")  # What cannot work at all fails here, not at the first request.
    except PipelineUnloadable:
        raise
    except Exception as error:  # The library raises plain Exception for whatever it does not like.
        raise PipelineUnloadable(f"{step.file} is no tokenizer file ({error})") from error
    dtype = DTYPES[step.datatype]

    def operation(value: object, context: Context) -> None:
        assert isinstance(value, str)
        tokens = tokenizer.encode(value)
        if not tokens.ids:
            raise Unfit("has no tokens")
        context.fed[step.ids] = np.array([tokens.ids], dtype)
        if step.mask:
            context.fed[step.mask] = np.array([tokens.attention_mask], dtype)
        if step.types:
            context.fed[step.types] = np.array([tokens.type_ids], dtype)

    return operation
