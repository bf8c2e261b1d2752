"""Edits of the labels that operators give: what a change makes of a set of labels. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from muster_controller.core.selector import RESERVED, SelectorInvalid, equals
from muster_shared.enrolment import check_labels
from muster_shared.errors import WireError


@dataclass(frozen=True)
class LabelEdit:
    """`given`: labels to give, over what was there. `taken`: keys to take off."""

    given: Mapping[str, str] = field(default_factory=dict)
    taken: frozenset[str] = frozenset()

    def applied(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Return what `labels` are afterwards. Raises WireError: too many, or too long."""
        found = {key: value for key, value in labels.items() if key not in self.taken}
        found.update(self.given)
        check_labels(found)
        return found

    def __str__(self) -> str:
        words = [f"{key}={value}" for key, value in sorted(self.given.items())]
        return ", ".join(words + [f"{key}-" for key in sorted(self.taken)])


def edit_of(given: Mapping[str, str], taken: Iterable[str], words: Iterable[str] = ()) -> LabelEdit:
    """Return the edit that labels, keys and words (`key=value`, `key-`) say together.

    Raises:
        WireError: it changes nothing, says two things of one key, or names a key that no label of a device can have.
    """
    labels, keys = dict(given), set(taken)
    for word in words:
        key, equal, value = word.partition("=")
        if not equal and word.endswith("-"):
            keys.add(word[:-1])
        elif equal and key and labels.get(key, value) == value:
            labels[key] = value
        else:
            raise WireError(f"{word[:80]!r} is no edit: write key=value to set a label, and key- to take it off")
    if both := sorted(keys & labels.keys()):
        raise WireError(f"label {both[0]!r} cannot be set and taken off at once")
    if not keys and not labels:
        raise WireError("say what to change: key=value sets a label, key- takes it off")
    for key in sorted(labels.keys() | keys):
        if key.startswith(RESERVED):
            raise WireError(
                f"{key!r} is what a device reports of itself; keys below {' and '.join(RESERVED)} are not given"
            )
        try:
            equals({key: labels.get(key, "")})
        except SelectorInvalid as error:
            raise WireError(f"no selector could name {key!r}={labels.get(key, '')!r}: {error}") from error
    edit = LabelEdit(labels, frozenset(keys))
    edit.applied({})
    return edit
