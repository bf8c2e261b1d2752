"""Texts to tokens by a tokenizer file of the bundle, and files to byte windows."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from harness.pipelines import load, manifest, tensor
from muster_agent.pipeline.pipeline import LoadedPipeline
from muster_agent.pipeline.value import PipelineUnloadable, RawRefused
from muster_shared import pipeline as p
from muster_simulator.workloads import magika

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "model", "serve", "##s", "ö", "."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle folder with a small WordPiece tokenizer as BERT has it."""
    tokenizer = Tokenizer(models.WordPiece({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def pipeline(folder: Path, step: p.Tokenise, decode: p.DecodeText | None = None, width: int = -1) -> LoadedPipeline:
    names = [name for name in (step.ids, step.mask, step.types) if name]
    inputs = [tensor(step.datatype, -1, width, name=name) for name in names]
    return load(manifest((decode or p.DecodeText(), step), inputs, accepts=("text/plain",)), folder)


def test_a_text_becomes_numbers_mask_and_segments(folder: Path) -> None:
    step = p.Tokenise(file="tokenizer.json", tokens_max=8, ids="ids", mask="mask", types="types")

    arrays = pipeline(folder, step, width=8).prepare(b"The model serves.", "text/plain").arrays

    assert arrays["ids"].tolist() == [[2, 4, 5, 6, 7, 9, 3, 0]]
    assert arrays["mask"].tolist() == [[1, 1, 1, 1, 1, 1, 1, 0]]
    assert arrays["types"].tolist() == [[0] * 8]
    assert all(array.dtype == np.int64 for array in arrays.values())


def test_a_long_text_is_cut_and_keeps_its_last_special_token(folder: Path) -> None:
    step = p.Tokenise(file="tokenizer.json", tokens_max=5, ids="ids", datatype="INT32")

    ids = pipeline(folder, step).prepare(b"the model serves the model serves", "text/plain").arrays["ids"]

    assert ids.tolist() == [[2, 4, 5, 6, 3]]
    assert ids.dtype == np.int32


def test_threads_share_one_tokenizer_without_mixing_their_texts(folder: Path) -> None:
    each = pipeline(folder, p.Tokenise(file="tokenizer.json", tokens_max=40, ids="ids", mask="mask"))

    def prepare(number: int) -> list[int]:
        arrays = each.prepare(b" ".join([b"the model"] * (number % 20)), "text/plain").arrays
        numbers: list[int] = arrays["ids"][0, : int(arrays["mask"].sum())].tolist()
        return numbers

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(prepare, range(400)))

    assert together == [[2, *([4, 5] * min(number % 20, 19)), 3][:40] for number in range(400)]


def test_without_padding_the_length_is_that_of_the_text(folder: Path) -> None:
    step = p.Tokenise(file="tokenizer.json", tokens_max=100, pad=False, ids="ids")

    ids = pipeline(folder, step).prepare(b"the model", "text/plain").arrays["ids"]

    assert ids.tolist() == [[2, 4, 5, 3]]


def test_a_tokenizer_without_the_padding_token_is_a_broken_release(folder: Path) -> None:
    with pytest.raises(PipelineUnloadable, match=r"tokenizer.json has no token '<pad>'"):
        pipeline(folder, p.Tokenise(file="tokenizer.json", tokens_max=5, pad_token="<pad>", ids="ids"))


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xff", b'{"model": {"type": "Remote"}}'])
def test_a_file_that_is_no_tokenizer_is_a_broken_release(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)

    with pytest.raises(PipelineUnloadable, match=r"tokenizer.json is no tokenizer file"):
        pipeline(tmp_path, p.Tokenise(file="tokenizer.json", tokens_max=5, ids="ids"))


def test_text_is_strict_utf_8_in_the_form_that_the_release_names(folder: Path) -> None:
    step = p.Tokenise(file="tokenizer.json", tokens_max=4, ids="ids")
    composed = pipeline(folder, step, p.DecodeText(form="NFC", strip=True, bytes_max=40))

    prepared = composed.prepare("\ufeff  o\u0308 ".encode(), "text/plain")

    assert prepared.arrays["ids"].tolist() == [[2, 8, 3, 0]]
    assert prepared.context.facts()["characters"] == 1
    with pytest.raises(RawRefused, match=r"step 1 \(decode_text\): it is not UTF-8 \(byte 2\)"):
        composed.prepare(b"ab\xff", "text/plain")
    with pytest.raises(RawRefused, match="has 41 bytes; the limit is 40"):
        composed.prepare(b"a" * 41, "text/plain")


def test_a_text_may_go_to_the_model_as_it_is() -> None:
    strings = load(manifest((p.DecodeText(), p.Strings()), [tensor("BYTES", -1)], accepts=("text/plain",)))

    array = strings.prepare("grüße".encode(), "text/plain").arrays["x"]

    assert array.tolist() == ["grüße".encode()]


def window(step: p.Window, content: bytes) -> list[int]:
    total = step.head_bytes + step.middle_bytes + step.tail_bytes
    accepts: tuple[p.Media, ...] = ("application/octet-stream",)
    pipeline = load(manifest((step,), [tensor(step.datatype, -1, total)], accepts=accepts))
    numbers: list[int] = pipeline.prepare(content, accepts[0]).arrays["x"][0].tolist()
    return numbers


def test_a_short_file_is_padded_at_the_far_side_of_each_part() -> None:
    step = p.Window(head_bytes=4, middle_bytes=5, tail_bytes=4, block_bytes=8, strip="whole", padding=256)

    assert window(step, b"  ab ") == [97, 98, 256, 256, 256, 97, 98, 256, 256, 256, 256, 97, 98]
    assert window(step, b" \n") == [256] * 13


def test_white_space_counts_when_the_release_says_so() -> None:
    kept = p.Window(head_bytes=3, tail_bytes=3, strip="no", padding=-1)

    assert window(kept, b"  ab") == [32, 32, 97, 32, 97, 98]


WHITE = st.sampled_from([b" ", b"\n", b"\t ", b"a", b"bc", b"\0", b"x" * 700, b" " * 600])
FILES = st.builds(
    lambda parts, size: (b"".join(parts) * (size // max(1, sum(map(len, parts))) + 1))[:size],
    st.lists(WHITE, min_size=1, max_size=12),
    st.integers(0, 12_000),
)


@settings(deadline=None)
@given(content=FILES)
def test_both_generations_of_magika_see_in_a_raw_file_what_they_were_measured_on(content: bytes) -> None:
    for spec, step in ((magika.INPUT_V1, magika.WINDOW_V1), (magika.INPUT_V2, magika.WINDOW_V2)):
        wanted = magika.features(spec, content)

        pipeline = load(manifest((step,), [tensor(spec.datatype, *spec.shape)], accepts=("application/octet-stream",)))

        actual = pipeline.prepare(content, "application/octet-stream").arrays["x"]
        assert actual.dtype == wanted.dtype
        np.testing.assert_array_equal(actual, wanted)
