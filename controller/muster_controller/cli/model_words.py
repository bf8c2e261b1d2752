"""What `muster model show` and `compare` print for people, of what the API answered."""

from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

KEY_SHOWN = 16


def say_version(console: Console, model: str, found: dict[str, Any], now: float) -> None:
    """Print one release; `found`: its detail, with `trust` and `use`."""
    state = ", revoked" if found["is_revoked"] else ""
    console.print(f"{model} {found['version']}, release {found['release']}{state}, licence {found['licence']}")
    console.print(f"bundle {found['bundle_sha256']}", highlight=False)
    for variant in found["variants"]:
        console.print(f"  {variant['name']}: {variant['runtime']} {variant['precision']}")
    role = found["trust"]["role"]
    ends = "" if role["expires_at"] is None else f", {left(role['expires_at'], now)}"
    console.print(
        f"Signed by {role['signed']} of the {len(role['keys'])} keys of {role['role']}; {role['threshold']} are needed"
        f"{ends}."
    )
    for key in role["keys"]:
        did = "signed" if key["has_signed"] else "did not sign"
        console.print(f"  {key['id'][:KEY_SHOWN]}… {did}", highlight=False)
    use = found["use"]
    console.print(
        f"Serves on {use['devices']} devices, {use['online']} of them online; {use['standby']} keep it ready."
    )
    if use["picks"]:
        table = Table("class", "variant", "engine", "devices", "p95", "slowest", "rows/s")
        for pick in use["picks"]:
            table.add_row(
                pick["device_class"],
                pick["variant"] or "not told",
                f"{pick['engine']} {pick['device']}".strip() or "not told",
                str(pick["devices"]),
                ms(pick["latency_ms_p95"]),
                ms(pick["worst_ms_p95"]),
                "–" if pick["rows_per_s"] is None else f"{pick['rows_per_s']:.3g}",
            )
        console.print(table)


def say_comparison(console: Console, found: dict[str, Any]) -> None:
    """Print two releases side by side."""
    console.print(
        f"{found['model']} {found['before']} against {found['after']}: {decimal(found['bytes_before'])} became "
        f"{decimal(found['bytes_after'])}, of which {decimal(found['bytes_shared'])} are the same.",
        highlight=False,
    )
    table = Table("what", found["before"], found["after"])
    for fact in found["facts"]:
        if not fact["is_same"]:
            table.add_row(fact["name"], fact["before"], fact["after"])
    for file in found["files"]:
        if not file["is_same"]:
            lengths = (file["length_before"], file["length_after"])
            table.add_row(file["path"], *("–" if each is None else decimal(each) for each in lengths))
    console.print(table if table.row_count else "The manifests say the same.")
    speed = Table("class", f"p95 {found['before']}", "devices", f"p95 {found['after']}", "devices")
    for row in found["latency"]:
        before, after = str(row["devices_before"]), str(row["devices_after"])
        speed.add_row(row["device_class"], ms(row["before_ms"]), before, ms(row["after_ms"]), after)
    console.print(speed if found["latency"] else "No device serves either.")
    marks = {"gone": ("-", "red"), "new": ("+", "green"), "same": (" ", "")}
    for line in found["card"]:
        if line["mark"] == "left":
            console.print(f"… {line['text']} lines are the same")
        else:
            mark, style = marks[line["mark"]]
            console.print(f"{mark} {line['text']}", style=style or None, markup=False, highlight=False)


def ms(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g} ms"


def left(expires_at: float, now: float) -> str:
    """Return how long something still holds, in words."""
    seconds = abs(expires_at - now)
    time = f"{seconds / 86_400:.0f} days" if seconds >= 172_800 else f"{seconds / 3600:.1f} h"
    return f"{time} left" if expires_at > now else f"ran out {time} ago"
