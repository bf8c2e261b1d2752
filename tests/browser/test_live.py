"""Two browsers and a command line see the same rollout; a page without a connection says so, and catches up."""

import json
import re
import statistics
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Page, expect

from harness.console import Demo, eventually
from harness.visits import WAIT_MS, Visits
from muster_simulator.demo.wire_cut import WireCut

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300, func_only=True)]

MODEL, VERSION = "magika", "1.0.0"  # Not what the story turns.
ROUNDS = 5
MEDIAN_S = 1.0
LONGEST_S = 3.0  # A processor that has as much else to do.

# Keeps the moment (seconds since 1970, of the same machine's clock) at which the page showed each state.
OBSERVE = """() => {
  window.shown = [];
  const look = () => {
    const state = document.querySelector("#rollout .badge")?.textContent;
    if (state && state !== window.shown.at(-1)?.[0]) window.shown.push([state, Date.now() / 1000]);
  };
  new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
  look();
}"""


@pytest.fixture(scope="module")
def rollout(demo: Demo) -> Iterator[str]:
    """A rollout that goes on until it is aborted: its first wave of one device soaks for an hour."""
    demo.end_rollouts(MODEL)
    policy = {
        "waves": [1],
        "soak_s": "1h",
        "window_s": "4s",
        "deadline_s": "1h",
        "window_max_s": "14s",
        "requests_min": 0,
    }
    made = demo.ask("/rollouts", {"model": MODEL, "version": VERSION, "policy": policy})
    yield made["id"]
    demo.end_rollouts(MODEL)


class Follower:
    """`muster rollout watch --json`: what it printed, and when. It ends by itself when the rollout rests."""

    def __init__(self, demo: Demo, rollout: str) -> None:
        self.shown: list[tuple[str, float]] = []
        self._process = demo.muster("rollout", "watch", rollout, "--json")
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Follower":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._thread.join(10)
        self._process.communicate()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            self.shown.append((json.loads(line)["state"], time.time()))


def test_two_browsers_and_a_command_line_see_an_order_within_a_second(
    demo: Demo, visit: Visits, rollout: str, troubles: list[str]
) -> None:
    pages = [visit(f"/rollouts/{rollout}"), visit(f"/rollouts/{rollout}", phone=True)]
    for page in pages:
        page.evaluate(OBSERVE)
    took: dict[str, list[float]] = {"first": [], "second": [], "muster": []}

    for _ in range(ROUNDS):
        with Follower(demo, rollout) as follower:
            eventually(lambda told=follower: told.shown, "the command line shows the rollout")
            asked_at = _order(demo, rollout, "pause")
            took["first"].append(_shown(pages[0], "paused", asked_at))
            took["second"].append(_shown(pages[1], "paused", asked_at))
            eventually(lambda told=follower: told.shown[-1][0] == "paused", "the command line shows it paused")
            took["muster"].append(follower.shown[-1][1] - asked_at)
        asked_at = _order(demo, rollout, "resume")
        took["first"].append(_shown(pages[0], "running", asked_at))
        took["second"].append(_shown(pages[1], "running", asked_at))

    said = json.loads(demo.run_muster("rollout", "show", rollout, "--json"))
    assert said["state"] == "running"
    print({name: [round(each, 2) for each in all_] for name, all_ in took.items()})
    for name, all_ in took.items():
        assert statistics.median(all_) < MEDIAN_S, f"{name}: {all_}"
        assert max(all_) < LONGEST_S, f"{name}: {all_}"
    assert troubles == []


def test_a_page_that_lost_its_connection_says_so_and_catches_up(demo: Demo, visit: Visits, rollout: str) -> None:
    with WireCut("127.0.0.1", demo.port) as line:
        page = visit(f"/rollouts/{rollout}", url=f"http://127.0.0.1:{line.port}")
        page.evaluate("window.isTheSamePage = true")
        before = page.locator("#rollout .badge").first.inner_text()

        line.cut()
        expect(page.locator("#lost")).to_be_visible()
        said = page.locator("#lost").inner_text()
        order, after = ("resume", "running") if before == "paused" else ("pause", "paused")
        _order(demo, rollout, order)
        expect(page.locator("#rollout .badge").first).to_have_text(before)
        line.mend()

        assert re.search(r"Connection lost\. This is the fleet as of .*\d", said)
        expect(page.locator("#link")).to_have_attribute("data-state", "live", timeout=2 * WAIT_MS)
        expect(page.locator("#lost")).to_be_hidden()
        expect(page.locator("#rollout .badge").first).to_have_text(after)
        assert page.evaluate("window.isTheSamePage")


def test_an_order_without_a_connection_is_not_lost_silently(demo: Demo, visit: Visits, rollout: str) -> None:
    order = "pause" if demo.ask(f"/rollouts/{rollout}")["state"] == "running" else "resume"
    with WireCut("127.0.0.1", demo.port) as line:
        page = visit(f"/rollouts/{rollout}", url=f"http://127.0.0.1:{line.port}")
        page.click(f"#button-{rollout}-{order}")
        dialog = page.locator(f"#dialog-{rollout}-{order}")
        dialog.get_by_label("Reason").fill(f"typed at {datetime.now(UTC):%H:%M}")
        typed = dialog.get_by_label("Reason").input_value()

        line.cut()
        dialog.locator("button[type=submit]").click()
        line.mend()  # What was sent into nothing is torn.

        expect(dialog.get_by_role("alert")).not_to_be_empty(timeout=2 * WAIT_MS)
        expect(dialog).to_be_visible()
        assert dialog.get_by_label("Reason").input_value() == typed
        dialog.locator("button[type=submit]").click()
        expect(dialog).to_be_hidden()


def _order(demo: Demo, rollout: str, order: str) -> float:
    """Order it; return when the answer was there, in seconds since 1970."""
    demo.ask(f"/rollouts/{rollout}/{order}", {"reason": "two browsers look"})
    return time.time()


def _shown(page: Page, state: str, since: float) -> float:
    """Return how long after `since` the page showed `state`: 0 when it was there before."""
    page.wait_for_function("state => window.shown.at(-1)[0] === state", arg=state, timeout=WAIT_MS, polling=20)
    return max(0.0, float(page.evaluate("window.shown.at(-1)[1]")) - since)
