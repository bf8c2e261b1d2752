"""The command line against a real agent: batch jobs through kills, restarts and releases; predict, trial, top."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.digits_agent import DigitsAgent, digits_agent
from muster_simulator.workloads import digits

ROWS = 40_000
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def agent() -> Iterator[DigitsAgent]:
    with tempfile.TemporaryDirectory(prefix="mb-") as folder, digits_agent(Path(folder), "2.0.0", "2.1.0") as agent:
        yield agent


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "scans.npy"
    np.save(path, np.resize(digits.split().test_images.reshape(-1, 64), (ROWS, 64)))
    return path


def command(agent: DigitsAgent, *arguments: object, endpoint: str = "") -> list[str]:
    given = [str(argument) for argument in arguments]
    return [sys.executable, "-m", "muster_agent.cli", *given, "--endpoint", endpoint or agent.endpoint]


def ended(words: list[str], *, code: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == code, done.stderr + done.stdout
    return done


def asked(agent: DigitsAgent, *arguments: object, endpoint: str = "") -> Any:
    return json.loads(ended(command(agent, *arguments, "--json", endpoint=endpoint)).stdout)


@pytest.fixture(scope="module")
def answers(agent: DigitsAgent, scans: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a job that nothing interrupts writes."""
    out = tmp_path_factory.mktemp("answers") / "easy.npy"
    asked(agent, "batch", "digits", scans, out, "--rows", 32)
    return out.read_bytes()


def test_answers_are_those_of_the_model_in_the_order_of_the_rows(answers: bytes, tmp_path: Path) -> None:
    (tmp_path / "answers.npy").write_bytes(answers)
    scores = np.load(tmp_path / "answers.npy")
    truths = np.resize(digits.split().test_digits, ROWS)

    assert scores.shape == (ROWS, 10)
    assert (scores.argmax(axis=1) == truths).mean() > 0.95


def test_a_job_that_is_killed_again_and_again_ends_in_the_same_bytes(agent: DigitsAgent, tmp_path: Path) -> None:
    images = digits.split().test_images.reshape(-1, 64)
    many = tmp_path / "many.npy"
    np.save(many, np.resize(images, (len(images) * 500, 64)))
    easy, out = tmp_path / "easy.npy", tmp_path / "out.npy"
    journal = tmp_path / "out.npy.progress"
    asked(agent, "batch", "digits", many, easy, "--rows", 32)
    words = command(agent, "batch", "digits", many, out, "--rows", 32, "--json")
    rng = np.random.default_rng(11)
    for _ in range(3):
        began_at = rows_on_disk(journal)
        with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + TIMEOUT_S
            while rows_on_disk(journal) <= began_at and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(float(rng.uniform(0, 0.1)))  # Somewhere between two checkpoints.
            process.kill()

    summary = None if out.exists() else json.loads(ended(words).stdout)

    assert out.read_bytes() == easy.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["easy.npy", "many.npy", "out.npy"]
    assert summary is None or summary["resumed_at"] > 0


def rows_on_disk(journal: Path) -> int:
    """Return what the journal says; 0 without one."""
    try:
        rows: int = json.loads(journal.read_bytes())["rows"]
    except (OSError, ValueError):
        return 0
    return rows


def test_interrupting_keeps_the_rows_and_the_same_command_goes_on(
    agent: DigitsAgent, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    # One row at a time, one request at a time: the signal must find it at work, on a fast machine too.
    words = command(agent, "batch", "digits", scans, out, "--rows", 1, "--window", 1, "--json")
    with subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # A shell's background jobs ignore it.
    ) as process:
        part = out.with_name("out.jsonl.part")
        deadline = time.monotonic() + TIMEOUT_S
        while not (part.exists() and part.stat().st_size > 20_000):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 130

    summary = json.loads(ended(words).stdout)

    assert summary["resumed_at"] > 0
    assert summary["rows"] == ROWS
    assert out.read_bytes().count(b"\n") == ROWS


def test_a_restarted_agent_is_waited_for(agent: DigitsAgent, scans: Path, answers: bytes, tmp_path: Path) -> None:
    many, easy, out = tmp_path / "many.npy", tmp_path / "easy.npy", tmp_path / "out.npy"
    np.save(many, np.resize(np.load(scans), (10 * ROWS, 64)))  # More than is done before the agent is killed.
    easy.write_bytes(answers)
    words = command(agent, "batch", "digits", many, out, "--rows", 32, "--json")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        part = out.with_name("out.npy.part")
        deadline = time.monotonic() + TIMEOUT_S
        while not (part.exists() and part.stat().st_size > 40_000):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        agent.fleet.agent.kill()
        was_under_way = process.poll() is None
        agent.restart()
        said, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 0
    assert np.array_equal(np.load(out), np.resize(np.load(easy), (10 * ROWS, 10)))
    assert was_under_way
    assert json.loads(said)["rows"] == 10 * ROWS


def test_the_same_rows_travel_over_http(agent: DigitsAgent, scans: Path, answers: bytes, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"

    summary = asked(agent, "batch", "digits", scans, out, "--rows", 32, endpoint=agent.http_endpoint)

    assert summary["over"] == "HTTP"
    assert out.read_bytes() == answers


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl", "out.parquet", "out.sqlite"])
def test_every_format_is_written(agent: DigitsAgent, scans: Path, tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")

    summary = asked(agent, "batch", "digits", scans, tmp_path / name, "--limit", 1000)

    assert summary["rows"] == 1000
    assert summary["releases"][0]["version"] == "2.0.0"
    if name.endswith("sqlite"):
        with sqlite3.connect(tmp_path / name) as database:
            assert database.execute("SELECT count(*), max(row) FROM digits").fetchone() == (1000, 999)
        database.close()


def test_a_table_is_scored_beside_what_is_known_of_its_rows(agent: DigitsAgent, tmp_path: Path) -> None:
    path = tmp_path / "forms.csv"
    images = digits.split().test_images.reshape(-1, 64)[:50]
    lines = [f"form-{row},{','.join(map(repr, image.tolist()))}" for row, image in enumerate(images)]
    path.write_text("\n".join([f"form,{','.join(f'p{index}' for index in range(64))}", *lines]) + "\n")

    asked(agent, "batch", "digits", path, tmp_path / "scored.jsonl", "--keep", "form")

    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [line["form"] for line in scored] == [f"form-{row}" for row in range(50)]
    found = [int(np.argmax(line["probabilities"])) for line in scored]
    assert np.mean(found == digits.split().test_digits[:50]) > 0.9


def test_a_folder_of_images_goes_through_the_pipeline_of_the_release(agent: DigitsAgent, tmp_path: Path) -> None:
    images, truths = digits.split().test_images[:20], digits.split().test_digits[:20]
    (tmp_path / "scans").mkdir()
    for row, image in enumerate(images):
        (tmp_path / "scans" / f"{row:03}.png").write_bytes(digits.scan(image))

    asked(agent, "batch", "digits", tmp_path / "scans", tmp_path / "found.jsonl")

    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [line["file"] for line in found] == [f"{row:03}.png" for row in range(20)]
    right = [str(truth) in json.dumps(line["label"]) for line, truth in zip(found, truths, strict=True)]
    assert np.mean(right) > 0.8


def test_a_dry_run_shows_the_first_answer_and_writes_nothing(agent: DigitsAgent, scans: Path, tmp_path: Path) -> None:
    summary = asked(agent, "batch", "digits", scans, tmp_path / "out.npy", "--dry-run")

    assert summary["rows"] == ROWS
    assert len(summary["first"]["probabilities"]) == 10
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nothing", "{scans}", "out.npy"), 3, "no release of nothing serves"),
        (("digits", "absent.npy", "out.npy"), 2, "cannot be read"),
        (("digits", "{scans}", "out.xlsx"), 2, "nothing here writes .xlsx"),
        (("digits", "{scans}", "out.npy", "--columns", "zip"), 2, "no column 'zip'"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_own_exit_code(
    agent: DigitsAgent, scans: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    words = [str(tmp_path / word) if word.startswith("out.") else word.format(scans=scans) for word in arguments]

    done = ended(command(agent, "batch", *words), code=code)

    assert told in done.stderr


def test_predict_says_what_is_in_each_file(agent: DigitsAgent, tmp_path: Path) -> None:
    files = []
    for row, image in enumerate(digits.split().test_images[:3]):
        files.append(tmp_path / f"{row}.png")
        files[-1].write_bytes(digits.scan(image))
    (tmp_path / "broken.png").write_bytes(b"no image")

    done = ended(command(agent, "predict", "digits", *files, tmp_path / "broken.png", "--json"), code=1)

    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in said] == [str(file) for file in files]
    assert all(line["predictions"] for line in said)
    assert "broken.png" in done.stderr


def test_top_shows_what_a_job_does(agent: DigitsAgent, scans: Path, tmp_path: Path) -> None:
    words = command(agent, "batch", "digits", scans, tmp_path / "out.csv", "--rows", 2)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + TIMEOUT_S
        while not (tmp_path / "out.csv.part").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        shown = asked(agent, "top", "--once", "--interval", "0.3")
        process.kill()

    [model] = shown["models"]
    assert model["rows_per_s"] > 0
    assert model["stages"]["compute"]["p50_ms"] > 0
    assert shown["rss_mb"] > 10


def test_run_imports_nothing_that_only_batch_needs() -> None:
    code = (
        "import sys; from muster_agent.cli import main; main(['run', '--config', '/nonexistent']);"
        "late = ('pyarrow', 'tqdm', 'muster_agent.batch', 'muster_agent.top', 'http.client');"
        "print([name for name in sys.modules if name.startswith(late)])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout.strip() == "[]"


def test_another_release_in_the_middle_stops_the_job_and_any_version_does_not(
    agent: DigitsAgent, scans: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    words = command(agent, "batch", "digits", scans, out, "--rows", 1)
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"}) as process:
        part = out.with_name("out.jsonl.part")
        deadline = time.monotonic() + TIMEOUT_S
        while not (part.exists() and part.stat().st_size > 1000):
            assert time.monotonic() < deadline
            time.sleep(0.002)
        agent.assign("2.1.0")
        _, said = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 6, said
    assert "2.1.0" in said
    assert ended(words, code=6).stderr
    summary = asked(agent, "batch", "digits", scans, out, "--restart", "--any-version", "--limit", 100)
    assert [span["version"] for span in summary["releases"]] == ["2.1.0"]


def test_a_trial_is_begun_read_and_ended(agent: DigitsAgent) -> None:
    begun = asked(agent, "trial", "digits", "--shadow", "50%")
    read = asked(agent, "trial", "digits")
    gone = asked(agent, "trial", "digits", "--end")

    assert (begun["trial"]["mode"], begun["trial"]["share"]) == ("shadow", 0.5)
    assert read["trial"]["candidate"] == begun["trial"]["candidate"]
    assert gone["trial"] is None
    assert asked(agent, "trial", "digits")["trial"] is None
