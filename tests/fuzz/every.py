"""All targets, and where each is: a worker imports only the module of its own."""

from importlib import import_module

from fuzz.target import Target

MODULES = {
    "wire": (
        "messages",
        "fleet",
        "topics",
        "broker-url",
        "assignment",
        "assignment-envelope",
        "call",
        "enrolment",
        "manifest",
    ),
    "trust": ("trust-forged", "trust-signed", "trust-state"),
    "serving": ("v2", "grpc", "http", "frames", "chunks"),
    "metrics": ("window", "sealed", "histogram", "mixed", "mixer-state", "reference"),
    "control": ("policy", "selector", "ceremony", "online-keys", "api-bodies"),
}
NAMES = tuple(name for names in MODULES.values() for name in names)


def target(name: str) -> Target:
    """Return the target `name`. Raises KeyError: there is none."""
    module = next((module for module, names in MODULES.items() if name in names), None)
    if module is None:
        raise KeyError(f"no target {name!r}; there are {', '.join(NAMES)}")
    found: tuple[Target, ...] = import_module(f"fuzz.{module}").TARGETS
    return next(each for each in found if each.name == name)
