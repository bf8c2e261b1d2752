"""One run of the engine: what is wrong with one call is that call's own error, and a batch answers what singles do."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from muster_agent.engines.port import Achieved, Array, InferenceFailed, InputRefused
from muster_agent.engines.tensors import DTYPES
from muster_agent.serving.call import Call
from muster_agent.serving.execution import Execution, takes_batches
from muster_shared.bundle import DataType, TensorSpec

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))


class Engine:
    """A session in memory that computes what it is given."""

    achieved = Achieved(engine="onnxruntime", version="0", device="CPU", precision="fp32", threads=1)
    concurrency = 1

    def __init__(self, compute: Callable[..., list[Array]]) -> None:
        self.calls: list[tuple[Array, ...]] = []
        self._compute = compute

    def run_arrays(self, arrays: tuple[Array, ...]) -> list[Array]:
        self.calls.append(arrays)
        return self._compute(*arrays)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        raise AssertionError("requests that are served come by run_arrays")

    def close(self) -> None:
        """Hold nothing."""


class Asked(Call):
    """A call whose outcome the test reads."""

    def settle(self) -> None:
        raise AssertionError("execution settles nobody")


def call(*arrays: Array, batched: bool = True) -> Asked:
    tensors = tuple(array if array.dtype == object else array.tobytes() for array in arrays)
    shapes = tuple(array.shape[1:] if batched else array.shape for array in arrays)
    return Asked(tensors, shapes, len(arrays[0]) if batched else 1)


def half(x: Array) -> list[Array]:
    return [np.multiply(x, np.float32(0.5))]


def f32(*rows: Sequence[float]) -> Array:
    return np.array(rows, np.float32)


GOOD = f32([1, 2, 3])


def test_a_batch_is_one_call_of_the_engine_and_each_gets_its_own_rows() -> None:
    engine = Engine(half)
    calls = [call(f32([1, 2, 3])), call(f32([4, 5, 6], [7, 8, 9]))]

    Execution(engine, (X,), (Y,)).run(calls)

    assert [arrays[0].shape for arrays in engine.calls] == [(3, 3)]
    assert calls[0].output(0).tolist() == [[0.5, 1, 1.5]]
    assert calls[1].output(0).tolist() == [[2, 2.5, 3], [3.5, 4, 4.5]]
    assert bytes(calls[1].raw(0)) == calls[1].output(0).tobytes()


@given(
    st.lists(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-1e6, 1e6, width=32)),
        min_size=1,
        max_size=5,
    )
)
def test_what_a_batch_answers_is_bit_for_bit_what_singles_are_answered(inputs: list[Array]) -> None:
    def compute(x: Array) -> list[Array]:
        return [np.tanh(x) / np.float32(3), np.argmax(x, axis=1)]

    outputs = (Y, TensorSpec(name="n", datatype="INT64", shape=(-1,)))
    together, alone = [call(x) for x in inputs], [call(x) for x in inputs]
    execution = Execution(Engine(compute), (X,), outputs)

    execution.run(together)
    for single in alone:
        execution.run((single,))

    for one, other in zip(together, alone, strict=True):
        assert [bytes(one.raw(index)) for index in range(2)] == [bytes(other.raw(index)) for index in range(2)]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize(
    ("spec", "bad", "message"),
    [
        (X, [1, np.nan, 3], r"'x' has a value that is not a finite number at \[0, 1\]"),
        (X, [1, 2, np.inf], r"not a finite number at \[0, 2\]"),
        (X, [np.inf, 2, -np.inf], r"not a finite number at \[0, 0\]"),
        (TensorSpec(name="x", datatype="FP32", shape=(-1, 3), min=0), [1, -1, 3], r"a value below 0 at \[0, 1\]"),
        (TensorSpec(name="x", datatype="FP32", shape=(-1, 3), max=3.5), [1, 2, 4], r"a value above 3.5 at \[0, 2\]"),
        (
            TensorSpec(name="x", datatype="FP32", shape=(-1, 3), finite=False, min=0),
            [1, np.nan, 3],
            r"a value below 0 at \[0, 1\]",
        ),
    ],
)
def test_a_bad_value_fails_alone_and_the_rest_of_its_batch_is_answered(
    spec: TensorSpec, bad: list[float], message: str
) -> None:
    calls = [call(GOOD), call(f32(bad)), call(GOOD)]

    Execution(Engine(half), (spec,), (Y,)).run(calls)

    assert isinstance(calls[1].error, InputRefused)
    assert calls[1].error.tensor == "x"
    with pytest.raises(InputRefused, match=message):
        raise calls[1].error
    for good in (calls[0], calls[2]):
        assert good.error is None
        assert good.output(0).tolist() == [[0.5, 1, 1.5]]


def test_a_bad_value_never_reaches_the_engine() -> None:
    engine = Engine(half)

    Execution(engine, (X,), (Y,)).run([call(f32([np.nan, 0, 0]))])

    assert engine.calls == []


def test_values_that_are_allowed_to_be_anything_are() -> None:
    anything = TensorSpec(name="x", datatype="FP32", shape=(-1, 3), finite=False)
    asked = call(f32([np.nan, np.inf, 1]))

    Execution(Engine(half), (anything,), (Y,)).run([asked])

    assert asked.error is None


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_finite_values_whose_sum_is_not_are_allowed(datatype: DataType) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 300))
    largest = np.full((1, 300), float(np.finfo(datatype.replace("FP", "float")).max), DTYPES[datatype])
    asked = call(largest)

    with np.errstate(over="ignore"):
        Execution(Engine(lambda x: [x]), (spec,), (spec,)).run([asked])

    assert asked.error is None


@pytest.mark.parametrize(("value", "allowed"), [(0, True), (255, True), (-1, False), (256, False)])
def test_bounds_hold_for_integers_and_include_their_ends(value: int, allowed: bool) -> None:
    spec = TensorSpec(name="x", datatype="INT16", shape=(-1,), min=0, max=255)
    asked = call(np.array([value], np.int16))

    Execution(Engine(lambda x: [x]), (spec,), (spec,)).run([asked])

    assert (asked.error is None) is allowed


@pytest.mark.parametrize("error", [InferenceFailed("out of memory"), ZeroDivisionError("a bug of the engine")])
def test_an_engine_that_fails_on_a_batch_is_asked_again_for_each_alone(error: Exception) -> None:
    def moody(x: Array) -> list[Array]:
        if len(x) > 1 or np.any(x == 13):
            raise error
        return half(x)

    calls = [call(GOOD), call(f32([13, 0, 0])), call(GOOD)]

    Execution(Engine(moody), (X,), (Y,)).run(calls)

    assert [asked.error is None for asked in calls] == [True, False, True]
    assert isinstance(calls[1].error, InferenceFailed)
    assert str(error) in str(calls[1].error)


def test_an_engine_that_answers_another_number_of_rows_has_failed() -> None:
    asked = call(GOOD)

    Execution(Engine(lambda x: [np.ones((2, 3), np.float32)]), (X,), (Y,)).run([asked])

    assert isinstance(asked.error, InferenceFailed)


def test_a_model_without_a_batch_answers_one_call_with_all_of_its_output() -> None:
    fixed = TensorSpec(name="x", datatype="FP32", shape=(2, 3))
    scalar = TensorSpec(name="y", datatype="FP32", shape=())
    asked = call(f32([1, 2, 3], [4, 5, 6]), batched=False)

    execution = Execution(Engine(lambda x: [np.asarray(x.sum())]), (fixed,), (scalar,))
    execution.run([asked])

    assert not execution.rows_axis
    assert asked.output(0).shape == ()
    assert bytes(asked.raw(0)) == np.float32(21).tobytes()


@pytest.mark.parametrize(
    ("inputs", "outputs", "batches"),
    [
        ((X,), (Y,), True),
        ((X, TensorSpec(name="k", datatype="INT32", shape=(1,))), (Y,), False),
        ((X,), (Y, TensorSpec(name="n", datatype="INT64", shape=())), False),
        ((TensorSpec(name="x", datatype="FP32", shape=(1, -1)),), (Y,), False),
    ],
)
def test_only_a_model_with_a_free_first_axis_everywhere_takes_batches(
    inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], batches: bool
) -> None:
    assert takes_batches(inputs, outputs) is batches


def test_an_input_without_a_batch_beside_one_with_it_keeps_its_shape() -> None:
    k = TensorSpec(name="k", datatype="INT32", shape=(2,))
    engine = Engine(lambda x, k: [x])
    asked = Asked((f32([1, 2, 3], [4, 5, 6]).tobytes(), np.array([7, 8], np.int32).tobytes()), ((3,), (2,)), 2)

    Execution(engine, (X, k), (Y,)).run([asked])

    assert [array.shape for array in engine.calls[0]] == [(2, 3), (2,)]
    assert asked.error is None


def test_strings_are_joined_and_shared_out() -> None:
    text = TensorSpec(name="t", datatype="BYTES", shape=(-1, 2))

    def upper(texts: Array) -> list[Array]:
        flat = np.array([*(one.upper() for one in texts.ravel().tolist()), None], object)[:-1]
        return [flat.reshape(texts.shape)]

    calls = [call(np.array([[b"a", b"b"]], object)), call(np.array([[b"c", b""], [b"\xff", b"e"]], object))]

    Execution(Engine(upper), (text,), (text,)).run(calls)

    assert calls[0].output(0).tolist() == [[b"A", b"B"]]
    assert calls[1].output(0).tolist() == [[b"C", b""], [b"\xff", b"E"]]


@pytest.mark.parametrize("datatype", [datatype for datatype in DTYPES if datatype != "BYTES"])
def test_the_engine_gets_aligned_arrays_of_the_declared_type(datatype: DataType) -> None:
    spec = TensorSpec(name="x", datatype=datatype, shape=(-1, 2))
    engine = Engine(lambda x: [x])
    values = np.array([[0, 1]]).astype(DTYPES[datatype])

    Execution(engine, (spec,), (spec,)).run([call(values), call(values)])

    (array,) = engine.calls[0]
    assert (array.dtype, array.shape) == (DTYPES[datatype], (2, 2))
    assert array.flags.c_contiguous
    assert array.flags.aligned
    assert array.tolist() == [*values.tolist(), *values.tolist()]


def test_the_engine_s_time_is_that_of_the_engine_alone() -> None:
    asked = [call(GOOD), call(GOOD)]

    times = Execution(Engine(half), (X,), (Y,)).run(asked)

    assert times.began_ns <= times.computing_ns <= times.computed_ns
    assert asked[0].batch is asked[1].batch
    assert asked[0].batch is not None
    assert asked[0].batch.engine_ns == times.computed_ns - times.computing_ns


def test_a_call_with_more_rows_than_a_run_may_have_is_run_in_parts_and_answered_as_one() -> None:
    engine = Engine(half)
    rows = np.arange(15, dtype=np.float32).reshape(5, 3)
    asked = call(rows)

    Execution(engine, (X,), (Y,), rows_max=2).run((asked,))

    assert [len(arrays[0]) for arrays in engine.calls] == [2, 2, 1]
    assert np.array_equal(asked.output(0), rows / 2)
