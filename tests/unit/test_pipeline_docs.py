"""The reference of pipelines: every example is proven, and no step or field is missing from it."""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from muster_shared import pipeline as p
from muster_shared.bundle import TensorSpec
from muster_shared.pipeline_check import prove

DOCUMENT = (Path(__file__).parents[2] / "docs/pipelines.md").read_text()
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
STEPS = (*get_args(p.PrepareStep), *get_args(p.FinishStep))


class Example(msgspec.Struct, forbid_unknown_fields=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    pipeline: p.Pipeline
    labels: tuple[str, ...] = ()


@pytest.mark.parametrize("text", EXAMPLES)
def test_every_example_is_a_pipeline_that_holds(text: str) -> None:
    example = msgspec.toml.decode(text, type=Example)

    proof = prove(example.pipeline, example.inputs, example.outputs, example.labels)

    assert proof.rows in (1, -1)


def test_every_step_has_an_example() -> None:
    examples = [msgspec.toml.decode(text, type=Example).pipeline for text in EXAMPLES]
    shown = {type(step) for each in examples for step in (*each.prepare, *each.finish)}

    assert set(STEPS) - shown == set()


@pytest.mark.parametrize("step", STEPS)
def test_every_field_of_a_step_is_in_its_row(step: type[msgspec.Struct]) -> None:
    tag = str(step.__struct_config__.tag)
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| `")]
    row = next(line for line in rows if f"`{tag}`" in line.split("|")[1])

    assert [name for name in step.__struct_fields__ if f"`{name}`" not in row] == []
