"""From a Policy to a document that says only what differs from the defaults. Reading it gives the same policy."""

import re

import msgspec
import yaml

from muster_controller.core.policy import Policy
from muster_controller.policy_document import units
from muster_controller.policy_document.nodes import FLOAT

Built = dict[str, object]


class _Dumper(yaml.SafeDumper):
    """Quotes what any YAML reader could take for a number, ours included."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"(?:{FLOAT.pattern})\Z"), list("-+.0123456789"))


def written(policy: Policy) -> Built:
    """Return the fields of `policy` that differ from the default, as JSON has them, times and shares as numbers."""
    return _differing(policy)


def dump(policy: Policy) -> str:
    """Return the shortest YAML that reads back as `policy`."""
    found = _for_people(_differing(policy), "")
    return yaml.dump(found, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)


def _differing(value: msgspec.Struct) -> Built:
    found: Built = {}
    for each in msgspec.structs.fields(value):
        held = getattr(value, each.name)
        if each.required or held != _default(each):
            found[each.name] = _built(held)
    return found


def _built(held: object) -> object:
    if isinstance(held, msgspec.Struct):
        return _differing(held)
    if isinstance(held, tuple):
        return [_built(entry) for entry in held]
    return held


def _default(field: msgspec.structs.FieldInfo) -> object:
    return field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()


def _for_people(found: Built, prefix: str) -> Built:
    return {key: _value_for_people(value, f"{prefix}{key}") for key, value in found.items()}


def _value_for_people(value: object, path: str) -> object:
    if isinstance(value, dict):
        return _for_people(value, f"{path}.")
    if isinstance(value, list):
        return [_value_for_people(entry, f"{path}[]") for entry in value]
    if isinstance(value, int | float) and not isinstance(value, bool) and units.is_duration(path):
        value = units.duration_text(float(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value
