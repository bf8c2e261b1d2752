"""Greedy CTC decoding (Graves et al. 2006, 3.2: best path): one symbol a time step, repeats merged, blanks dropped."""

import numpy as np

from muster_agent.pipeline.value import FinishOperation, Reading
from muster_shared import pipeline as p


def greedy(step: p.CtcGreedy, labels: tuple[str, ...], symbols: int) -> FinishOperation:
    """Return the operation of `step` for a tensor of [time, symbols]."""
    charset = list(labels)
    if symbols == len(labels) + 1:
        charset.insert(step.blank, "")

    def operation(reading: Reading) -> None:
        table = reading.tensor(step.output)
        path = table.argmax(axis=1) if len(table) else np.zeros(0, np.intp)
        begins = path != step.blank
        begins[1:] &= path[1:] != path[:-1]
        times = np.flatnonzero(begins)
        reading.answer[step.field] = "".join(charset[symbol] for symbol in path[times].tolist())
        scores = table[times, path[times]]
        reading.answer[step.score_field] = float(scores.mean(dtype=np.float64)) if times.size else 0.0

    return operation
