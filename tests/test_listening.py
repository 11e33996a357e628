"""Listening tests: built, taken in a real browser, and summed up."""

from __future__ import annotations

import base64
import csv
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import CLIP, Run

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.listening import HIDDEN_REFERENCE, LOW_ANCHOR, Trial, build_listening_test, low_anchor
from q2d2cli.evaluation.listening_results import listening_results

RATE = 16_000
CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
in_browser = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


def trials(count: int = 2) -> list[Trial]:
    audio = soundfile.read(CLIP, dtype="float32")[0]
    pieces = [audio[i * RATE : (i + 1) * RATE] for i in range(count)]
    return [
        Trial(f"clip {i}", RATE, piece, {"ours": 0.9 * piece, "theirs": piece[::4].repeat(4)[: RATE - 100]})
        for i, piece in enumerate(pieces)
    ]


def manifest(page: Path) -> dict[str, Any]:
    """What the page knows."""
    found = re.search(r'bytes\("([A-Za-z0-9+/=]+)"\)', page.read_text())
    assert found
    return json.loads(base64.b64decode(found[1]))


def test_a_test_holds_reference_anchor_and_systems_under_opaque_names(tmp_path: Path) -> None:
    page = build_listening_test(tmp_path / "test", "mushra", "A test", trials())
    stimuli = manifest(page)["pages"][0]["stimuli"]
    assert set(stimuli) == {"ours", "theirs", HIDDEN_REFERENCE, LOW_ANCHOR}
    text = page.read_text()
    assert not any(name in text for name in ("ours<", "theirs", '"ours"'))
    assert not re.search(r'(src|href)="http', text)
    lengths = set()
    for number in stimuli.values():
        script = (tmp_path / "test/audio" / f"{number}.js").read_text()
        lengths.add(len(base64.b64decode(script.split('"')[3])))
    assert len(lengths) == 1  # a length gives nothing away


def test_the_low_anchor_ends_at_3500_hz() -> None:
    noise = np.random.default_rng(0).normal(size=RATE * 2)
    before, after = (np.abs(np.fft.rfft(x)) ** 2 for x in (noise, low_anchor(noise, RATE)))
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)

    def level(low: float, high: float) -> float:
        chosen = (frequencies >= low) & (frequencies < high)
        return 10 * np.log10(after[chosen].sum() / before[chosen].sum())

    assert abs(level(100, 3500)) < 0.1
    assert level(4000, 4500) < -25
    assert level(4500, 8000) < -50


def test_what_makes_no_test_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    for out, kind, given, message in (
        (tmp_path / "full", "mushra", trials(), "is not empty"),
        (tmp_path / "a", "mushra", [], "at least one trial"),
        (tmp_path / "b", "cmos-q", [Trial("x", RATE, np.zeros(9), {"one": np.zeros(9)})], "at least 2 systems"),
        (tmp_path / "c", "mushra", trials(1) * 2, "two trials are called"),
    ):
        with pytest.raises(UsageError, match=message):
            build_listening_test(out, kind, "x", given)  # type: ignore[arg-type]


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Callable[[Path], Any]]:
    """Opens pages in headless Chromium; downloads go to `tmp_path / "downloads"`."""
    from selenium import webdriver

    drivers: list[Any] = []

    def open_page(page: Path) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in (
            *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "mute-audio"),
            *("disable-background-networking", "disable-component-update", "disable-sync"),
            *(
                "autoplay-policy=no-user-gesture-required",
                "window-size=1000,1400",
                f"user-data-dir={tmp_path / 'user'}",
            ),
        ):
            options.add_argument(f"--{flag}")
        options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
        drivers.append(driver)
        driver.get(page.as_uri())
        return driver

    yield open_page
    for driver in drivers:
        driver.quit()


def wait_for(condition: Callable[[], Any]) -> Any:
    """What becomes true within half a minute."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.05)
    raise AssertionError("nothing came of it")


def start(driver: Any, listener: str) -> None:
    """Through the first page: a name, and every recording played."""
    from selenium.webdriver.common.by import By

    next_button = driver.find_element(By.ID, "next")
    assert not next_button.is_enabled()
    driver.find_element(By.ID, "listener").send_keys(listener)
    wait_for(lambda: driver.find_element(By.ID, "play").is_enabled())
    for button in [driver.find_element(By.ID, "reference"), *driver.find_elements(By.CSS_SELECTOR, "#stimuli button")]:
        button.click()
        wait_for(lambda button=button: "heard" in button.get_attribute("class"))
    wait_for(next_button.is_enabled)
    next_button.click()
    wait_for(lambda: "Page 1" in driver.find_element(By.ID, "count").text)
    wait_for(lambda: driver.find_element(By.ID, "play").is_enabled())


def save(driver: Any, folder: Path) -> list[Path]:
    """Both files of the last page."""
    from selenium.webdriver.common.by import By

    paths = []
    for suffix in ("csv", "json"):
        wait_for(driver.find_element(By.ID, suffix).is_displayed)
        driver.find_element(By.ID, suffix).click()
        paths.append(wait_for(lambda suffix=suffix: next(iter(folder.glob(f"*.{suffix}")), None)))
    return paths


@in_browser
def test_a_mushra_test_from_the_command_to_the_means(
    run: Run, browse: Callable[[Path], Any], tiny: Path, tmp_path: Path
) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    audio, rate = soundfile.read(CLIP, dtype="float32")
    for number in range(2):
        soundfile.write(tmp_path / f"{number}.wav", audio[number * rate : (number + 1) * rate], rate)
    built = run(
        *(
            "eval",
            tmp_path,
            "--codec",
            f"q2d2:{tiny}",
            "--codec",
            "q2d2:speech-3k",
            "--listening-test",
            tmp_path / "page",
        )
    )
    assert built.returncode == 0, built.stderr

    driver = browse(tmp_path / "page/index.html")
    start(driver, "Ada, the first")
    body = driver.find_element(By.TAG_NAME, "body")
    for page in (1, 2):
        wait_for(lambda page=page: f"Page {page} of 2" in driver.find_element(By.ID, "count").text)
        wait_for(lambda: driver.find_element(By.ID, "play").is_enabled())
        rows = driver.find_elements(By.CSS_SELECTOR, "#stimuli .row")
        assert len(rows) == 4
        grades = driver.find_elements(By.CSS_SELECTOR, "#scale > div > div")
        assert [grade.text.split()[0] for grade in grades] == ["Bad", "Poor", "Fair", "Good", "Excellent"]
        assert len({grade.rect["y"] for grade in grades}) == 1  # beside each other, over the sliders
        body.send_keys("0")
        for number in range(1, 5):
            body.send_keys(str(number))
            wait_for(lambda row=rows[number - 1]: "active" in row.get_attribute("class"))
            # Sliders stand at 50: to 100 for the first, and to 60, 61, 62 for the others.
            body.send_keys(*([Keys.PAGE_UP] * (5 if number == 1 else 1)), *([Keys.ARROW_RIGHT] * max(0, number - 2)))
        if page == 1:
            # A reload loses nothing.
            driver.refresh()
            wait_for(lambda: driver.find_element(By.ID, "play").is_enabled())
            outputs = [row.text for row in driver.find_elements(By.CSS_SELECTOR, "#stimuli output")]
            assert outputs == ["100", "60", "61", "62"]
            body = driver.find_element(By.TAG_NAME, "body")
        wait_for(driver.find_element(By.ID, "next").is_enabled)
        body.send_keys(Keys.ENTER)
    paths = save(driver, tmp_path / "downloads")
    with paths[0].open(newline="") as file:
        rows_saved = list(csv.DictReader(file))
    assert sorted(int(row["score"]) for row in rows_saved) == [60, 60, 61, 61, 62, 62, 100, 100]
    assert {row["system"] for row in rows_saved} == {"tiny", "speech-3k", HIDDEN_REFERENCE, LOW_ANCHOR}
    assert {row["listener"] for row in rows_saved} == {"Ada, the first"}

    summed = run("eval", "--listening-results", *paths, "--json")
    assert summed.returncode == 0, summed.stderr
    result = json.loads(summed.stdout)["mushra"]
    below = [row for row in rows_saved if row["system"] == HIDDEN_REFERENCE and int(row["score"]) < 90]
    assert len(result["excluded"]) == (1 if below else 0)
    assert result["trials"] == 2
    assert "MUSHRA" in run("eval", "--listening-results", *paths).stdout.decode()


@in_browser
def test_a_cmos_test_in_the_browser(browse: Callable[[Path], Any], tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    page = build_listening_test(tmp_path / "page", "cmos-q", "Which is better?", trials(1))
    driver = browse(page)
    start(driver, "Bob")
    for selector in ("#reference", "#stimuli button:nth-child(1)", "#stimuli button:nth-child(2)"):
        driver.find_element(By.CSS_SELECTOR, selector).click()
    driver.find_element(By.CSS_SELECTOR, '#choices input[value="2"]').click()
    wait_for(driver.find_element(By.ID, "next").is_enabled)
    driver.find_element(By.ID, "next").click()
    paths = save(driver, tmp_path / "downloads")
    entry = json.loads(paths[1].read_text())["ratings"][0]
    # B is better than A by 2; what is saved is how the other system compares with the first.
    assert entry["score"] == (2 if entry["position"] == "B" else -2)
    assert (entry["system"], entry["baseline"]) == ("theirs", "ours")
    assert listening_results(paths)["cmos-q"]["systems"]["theirs"]["mean"] == entry["score"]


def session(name: str, scores: dict[str, list[int]], kind: str = "mushra", baseline: str = "") -> dict[str, Any]:
    """A listener's file, as the page saves it."""
    ratings = [
        {
            "trial": f"clip {trial}",
            "system": system,
            "baseline": baseline,
            "score": score,
            "position": "1",
            "page": trial + 1,
            "seconds": 1.5,
        }
        for system, values in scores.items()
        for trial, score in enumerate(values)
    ]
    head = {"format": "q2d2-listening-1", "test": "abc", "kind": kind, "title": "T", "listener": name, "session": name}
    return {**head, "finished": "2026-01-01T00:00:00Z", "ratings": ratings}


def write(folder: Path, *sessions: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{entry['listener']}.json" for entry in sessions]
    for path, entry in zip(paths, sessions, strict=True):
        path.write_text(json.dumps(entry))
    return paths


def test_means_intervals_and_quartiles(tmp_path: Path) -> None:
    good = {HIDDEN_REFERENCE: [100, 95], "ours": [60, 80]}
    paths = write(tmp_path, session("a", good), session("b", {HIDDEN_REFERENCE: [92, 90], "ours": [70, 90]}))
    result = listening_results(paths)["mushra"]["systems"]["ours"]
    assert result["n"] == 4
    assert result["mean"] == 75
    # t(0.975, 3) = 3.1824, standard deviation 12.9099.
    assert result["interval95"] == pytest.approx(3.1824 * 12.9099 / 2, abs=1e-3)
    assert (result["median"], result["quartiles"]) == (75, [67.5, 82.5])


def test_listeners_who_miss_the_hidden_reference_are_left_out(tmp_path: Path) -> None:
    twenty = [100] * 17
    careful = session("careful", {HIDDEN_REFERENCE: [*twenty, 80, 80, 80], "ours": [50] * 20})  # 15%: still in
    careless = session("careless", {HIDDEN_REFERENCE: [*twenty[:16], 80, 80, 80, 80], "ours": [90] * 20})
    result = listening_results(write(tmp_path, careful, careless))["mushra"]
    assert [entry["listener"] for entry in result["excluded"]] == ["careless"]
    assert "below 90 in 4 of 20 trials" in result["excluded"][0]["reason"]
    assert result["systems"]["ours"]["mean"] == 50


def test_preferences(tmp_path: Path) -> None:
    paths = write(tmp_path, session("a", {"theirs": [2, -1, 0, 3]}, "cmos-p", "ours"))
    result = listening_results(paths)["cmos-p"]
    assert result["baseline"] == "ours"
    assert result["systems"]["theirs"] == {
        "n": 4,
        "mean": 1.0,
        "interval95": pytest.approx(3.1824 * 1.8257 / 2, abs=1e-3),
        "preferred": 0.5,
        "baseline_preferred": 0.25,
        "same": 0.25,
    }


def test_damaged_and_foreign_results_are_one_line(run: Run, tmp_path: Path) -> None:
    good = session("a", {HIDDEN_REFERENCE: [100], "ours": [50]})
    (path,) = write(tmp_path, good)
    damaged = {
        "cut.json": path.read_text()[:-30],
        "other.json": '{"a": 1}',
        "score.json": json.dumps(session("x", {HIDDEN_REFERENCE: [100], "ours": [101]})),
        "table.csv": "a,b\r\n1,2\r\n",
        "empty.csv": "",
    }
    for name, text in damaged.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(Q2D2Error, match=re.escape(name)):
            listening_results([path, tmp_path / name])
    result = run("eval", "--listening-results", tmp_path / "cut.json")
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1
    assert run("eval", "--listening-results", tmp_path / "missing.json").returncode == 2
