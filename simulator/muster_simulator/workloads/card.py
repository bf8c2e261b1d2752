"""The model card of a release, in Markdown: what it is, on what it was made, what was measured, where it ends.

Pure: text from facts.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class CardText:
    """What the author writes; sentences, without headings."""

    what: str
    data: str
    limits: str


@dataclass(frozen=True)
class Proof:
    """One variant held against the release's own golden cases, and against the labelled inputs."""

    variant: str
    error_max: float
    """Largest absolute difference of any output element from the golden outputs."""
    argmax_agreement: float
    """Share (0..1) of golden cases whose largest output is in the same place."""
    accuracy: float
    """Share (0..1) of the labelled inputs that this variant answers right."""


def render(
    title: str, text: CardText, measured: tuple[Proof, ...], claim: float, inputs_count: int, licence: str
) -> str:
    """Return the card. `measured` is empty when the author measured nothing and `claim` is inherited."""
    if measured:
        rows = "\n".join(f"| {proof.variant} | {proof.accuracy:.1%} | {proof.error_max:.1g} |" for proof in measured)
        evidence = (
            f"On {inputs_count} labelled inputs; the error is the largest difference from the golden outputs.\n\n"
            f"| variant | accuracy | golden error |\n|---|---|---|\n{rows}\n\n"
            f"Claimed: {claim:.0%}, the worst rounded down."
        )
    else:
        evidence = f"Claimed: {claim:.0%}, as for the release before it. It was not measured again."
    sections = {
        "What it is": text.what,
        "Data": text.data,
        "Accuracy": evidence,
        "Limits": text.limits,
        "Licence": licence,
    }
    return f"# {title}\n" + "".join(f"\n## {heading}\n\n{body}\n" for heading, body in sections.items())
