"""A plan, as `--dry-run` and a question before a rollback show it."""

from typing import Any

from rich.console import Console
from rich.table import Table


def print_plan(console: Console, plan: dict[str, Any]) -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    over = f" over {plan['previous']}" if plan["previous"] else ""
    say(
        f"{plan['model']} {plan['version']}{over}: {plan['devices']} devices, {plan['online']} of them online;"
        f" {plan['changing']} would change."
    )
    say(
        f"{plan['in_standby']} keep {plan['version']} in standby and switch without a download;"
        f" {plan['previous_active']} run {plan['previous'] or 'nothing before it'} now, and keep it for the way back."
    )
    if plan["at_once"]:
        say("At once: every device is told now, offline ones too, without waves or a gate.")
    else:
        say(f"Waves: {', '.join(map(str, plan['waves'])) or 'none'}.")
        table = Table("class", "devices", "first wave", "can be held back beside it")
        for name, count in plan["classes"].items():
            first, held = plan["first_wave"].get(name, 0), plan["controls"].get(name, 0)
            table.add_row(name, str(count), str(first), str(held))
        console.print(table)
    for warning in plan["warnings"]:
        say(f"Note: {warning}.", "yellow")
    for rival in plan["rivals"]:
        said = {
            "refused": "this one would be refused",
            "taken_over": "these come to this one",
            "superseded": "it would end",
        }[rival["then"]]
        say(
            f"Rollout {rival['rollout']} ({rival['version']}, {rival['state']}, priority {rival['priority']}) has"
            f" {rival['devices']} of these devices: {said}.",
            "yellow",
        )
    if plan["refusal"]:
        say(f"It would be refused now: {plan['refusal']}.", "red")
