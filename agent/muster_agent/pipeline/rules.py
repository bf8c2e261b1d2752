"""Business rules in CEL, by the C++ implementation of its authors (`cel-expr-python`).

Expressions are typed against the answer's fields and compiled once. Their cost is bounded before they run: CEL has no
loops, the library allows 10,000 steps of its comprehensions and 32 levels of nesting, patterns are RE2 (linear), and
`COMPREHENSIONS_MAX` keeps strings from doubling at every level. There are no functions of ours, clocks or files.
"""

import re

import msgspec

from muster_agent.pipeline.value import FinishOperation, PipelineMissing, PipelineUnloadable, Reading, Unfit
from muster_shared import pipeline as p
from muster_shared.pipeline_types import FieldType

COMPREHENSIONS_MAX = 3
VALUE_BYTES_MAX = 64 * 1024
_COMPREHENSION = re.compile(r"\b(?:all|exists|exists_one|map|filter)\s*\(")


def rules(step: p.Rules, fields: dict[str, FieldType]) -> FinishOperation:
    """Return the operation of `step`, over answers with `fields`.

    Raises:
        PipelineMissing: the library is not installed.
        PipelineUnloadable: a rule does not compile, or is no truth value where it must be.
    """
    try:
        from cel_expr_python import cel
    except ImportError as error:
        raise PipelineMissing("rules", "rules", str(error)) from error
    kinds = cel.Type
    facts = kinds.Map(kinds.STRING, kinds.DYN)
    types = {
        "string": kinds.STRING,
        "double": kinds.DOUBLE,
        "int": kinds.INT,
        "objects": kinds.List(facts),
        "list": kinds.List(kinds.DYN),
        "dyn": kinds.DYN,
    }
    environment = cel.NewEnv(variables={"input": facts, **{name: types[kind] for name, kind in fields.items()}})
    programs = []
    for rule in step.rules:
        _check(rule)
        try:
            program = environment.compile(rule.when)
        except RuntimeError as error:
            raise PipelineUnloadable(f"rule {rule.name} does not compile: {error}") from error
        if rule.effect != "field" and program.return_type() not in (kinds.BOOL, kinds.DYN):
            raise PipelineUnloadable(f"rule {rule.name} gives {program.return_type().name()}; {rule.effect} wants BOOL")
        programs.append((rule, program))

    def operation(reading: Reading) -> None:
        known = {name: reading.answer[name] for name in fields if name in reading.answer}
        activation = environment.Activation({"input": reading.context.facts(), **known})
        flags = []
        for rule, program in programs:
            try:
                result = program.eval(activation)
            except RuntimeError as error:  # More steps than the library allows.
                raise Unfit(f"rule {rule.name} cannot be evaluated: {error}") from error
            value = result.plain_value()
            if result.type() == kinds.ERROR:
                raise Unfit(f"rule {rule.name} cannot be evaluated: {value}")
            if rule.effect == "field":
                reading.answer[rule.name] = _bounded(rule, value)
                continue
            if not isinstance(value, bool):
                raise Unfit(f"rule {rule.name} gives no truth value")
            if value and rule.effect == "reject":
                reading.answer.clear()
                reading.answer["rejected"] = {"rule": rule.name, "message": rule.message}
                return
            if value:
                flags.append(rule.name)
        earlier = reading.answer.get("flags", [])
        assert isinstance(earlier, list)
        reading.answer["flags"] = earlier + flags

    return operation


def _check(rule: p.Rule) -> None:
    # A comment could stand between the name of a macro and its bracket; comments need a line's end.
    if "\n" in rule.when or "\r" in rule.when:
        raise PipelineUnloadable(f"rule {rule.name} is longer than one line")
    count = len(_COMPREHENSION.findall(rule.when))
    if count > COMPREHENSIONS_MAX:
        raise PipelineUnloadable(f"rule {rule.name} has {count} comprehensions; the limit is {COMPREHENSIONS_MAX}")


def _bounded(rule: p.Rule, value: object) -> object:
    try:
        size = len(msgspec.json.encode(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise Unfit(f"rule {rule.name} gives what JSON does not have ({error})") from error
    if size > VALUE_BYTES_MAX:
        raise Unfit(f"rule {rule.name} gives {size} bytes; the limit is {VALUE_BYTES_MAX}")
    return value
