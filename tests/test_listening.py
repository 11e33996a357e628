"""Listening tests: the folder, a real browser through whole tests, and results against numbers worked out by hand."""

from __future__ import annotations

import base64
import functools
import io
import json
import threading
from collections.abc import Callable, Collection, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from q2d2cli.cli.listening import show
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.listening import (
    HIDDEN_REFERENCE,
    LOW_ANCHOR,
    Trial,
    build_listening_test,
    low_anchor,
)
from q2d2cli.evaluation.listening_results import CSV_COLUMNS, listening_results

RATE = 16_000
SECONDS = 6
TONES = {"reference": (500, 6000), "coarse": (1000,), "fine": (2000,), "middling": (3000,)}
"""Each signal can be told by its frequencies alone, so that a test can hear which one plays."""


def tones(*frequencies: int, samples: int = SECONDS * RATE) -> np.ndarray:
    time = np.arange(samples) / RATE
    return 0.2 * sum(np.sin(2 * np.pi * frequency * time) for frequency in frequencies)


def make_trials(names: tuple[str, ...] = ("one", "two"), systems: tuple[str, ...] = ("fine", "coarse")) -> list[Trial]:
    reference = tones(*TONES["reference"])
    return [Trial(name, RATE, reference, {system: tones(*TONES[system]) for system in systems}) for name in names]


def manifest_of(folder: Path) -> dict[str, Any]:
    page = (folder / "index.html").read_text("utf-8")
    return json.loads(base64.b64decode(page.split('JSON.parse(new TextDecoder().decode(bytes("')[1].split('"')[0]))


def audio_of(folder: Path, number: str) -> tuple[np.ndarray, int]:
    """The WAV file inside a numbered script."""
    text = (folder / "audio" / f"{number}.js").read_text("ascii")
    start = f'stimulus("{number}", "'
    assert text.startswith(start)
    return soundfile.read(io.BytesIO(base64.b64decode(text[len(start) :].split('"')[0])))


# ---- building


def test_mushra_folder_holds_every_stimulus_of_every_trial(tmp_path: Path) -> None:
    trials = make_trials()
    index = build_listening_test(tmp_path / "test", "mushra", "Codecs", trials)
    assert index == tmp_path / "test" / "index.html"
    manifest = manifest_of(index.parent)
    assert [page["trial"] for page in manifest["pages"]] == ["one", "two"]
    for page, trial in zip(manifest["pages"], trials, strict=True):
        expected = {
            "fine": trial.systems["fine"],
            "coarse": trial.systems["coarse"],
            HIDDEN_REFERENCE: trial.reference,
            LOW_ANCHOR: low_anchor(trial.reference, RATE),
        }
        assert set(page["stimuli"]) == set(expected)
        for system, number in {**page["stimuli"], "reference": page["reference"]}.items():
            audio, rate = audio_of(index.parent, number)
            assert rate == RATE
            np.testing.assert_allclose(audio, expected.get(system, trial.reference), atol=1 / 32768)
    files = {path.name for path in (index.parent / "audio").iterdir()}
    assert files == {f"{number:04d}.js" for number in range(1, 11)}


def test_cmos_folder_pairs_the_first_system_with_each_other_one(tmp_path: Path) -> None:
    trials = make_trials(systems=("middling", "fine", "coarse"))
    index = build_listening_test(tmp_path / "test", "cmos-q", "Codecs", trials)
    pages = manifest_of(index.parent)["pages"]
    pairs = [(page["trial"], page["baseline"], set(page["stimuli"])) for page in pages]
    assert pairs == [
        (trial, "middling", {"middling", other}) for trial in ("one", "two") for other in ("fine", "coarse")
    ]
    assert len(list((index.parent / "audio").iterdir())) == 8  # nothing is stored twice


def test_nothing_but_the_manifest_says_which_system_is_in_a_file(tmp_path: Path) -> None:
    trials = make_trials(names=tuple("abcdefgh"))
    index = build_listening_test(tmp_path / "test", "mushra", "Codecs", trials)
    assert "coarse" not in index.read_text("utf-8")
    assert len({path.stat().st_size for path in (index.parent / "audio").iterdir()}) == 1
    pages = manifest_of(index.parent)["pages"]
    ranks = [sorted(page["stimuli"].values()).index(page["stimuli"]["fine"]) for page in pages]
    assert len(set(ranks)) > 1  # the number's order does not follow the system's


def test_seed_decides_the_numbers(tmp_path: Path) -> None:
    def build(name: str, seed: int) -> dict[str, Any]:
        return manifest_of(build_listening_test(tmp_path / name, "mushra", "Codecs", make_trials(), seed).parent)

    assert build("a", 1) == build("b", 1)
    assert build("c", 2) != build("d", 1)


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = build_listening_test(tmp_path / "test", "mushra", "Codecs", make_trials()).read_text("utf-8")
    assert "://" not in text
    assert 'src="' not in text


def test_lengths_follow_the_reference_and_levels_stay(tmp_path: Path) -> None:
    reference = tones(500)
    trial = Trial("one", RATE, reference, {"short": 0.5 * reference[:-1000], "long": tones(500, samples=200_000)})
    index = build_listening_test(tmp_path / "test", "cmos-p", "Codecs", [trial])
    numbers = manifest_of(index.parent)["pages"][0]["stimuli"]
    short, _ = audio_of(index.parent, numbers["short"])
    long, _ = audio_of(index.parent, numbers["long"])
    assert len(short) == len(long) == len(reference)
    assert not short[-1000:].any()
    np.testing.assert_allclose(short[:-1000], 0.5 * reference[:-1000], atol=1 / 32768)
    np.testing.assert_allclose(long, reference, atol=1 / 32768)


@pytest.mark.parametrize("rate", [8000, 16_000, 24_000, 44_100, 48_000])
def test_low_anchor_meets_the_standards_filter(rate: int) -> None:
    """BS.1534-3: ripple at most 0.1 dB up to 3.5 kHz, 25 dB down at 4 kHz, 50 dB at 4.5 kHz."""
    impulse = np.zeros(4 * rate)
    impulse[2 * rate] = 1
    response = low_anchor(impulse, rate)
    assert len(response) == len(impulse)
    assert np.abs(response).argmax() == 2 * rate  # in step with the reference
    level = 20 * np.log10(np.abs(np.fft.rfft(response)) + 1e-12)
    frequency = np.fft.rfftfreq(len(response), 1 / rate)
    assert np.abs(level[frequency <= 3500]).max() <= 0.1
    assert level[frequency >= 4000].max() <= -25
    assert level[frequency >= 4500].max(initial=-99) <= -50


def wrong(**changes: Any) -> Trial:
    fields = {"name": "one", "rate": RATE, "reference": tones(500), "systems": {"a": tones(500), "b": tones(500)}}
    return Trial(**{**fields, **changes})


@pytest.mark.parametrize(
    ("kind", "trials", "words"),
    [
        ("abx", [wrong()], "abx"),
        ("mushra", [], "at least one"),
        ("mushra", [wrong(systems={})], "not 0"),
        ("mushra", [wrong(systems={str(i): tones(500) for i in range(8)})], "not 8"),
        ("mushra", [wrong(systems={HIDDEN_REFERENCE: tones(500)})], HIDDEN_REFERENCE),
        ("cmos-q", [wrong(systems={"a": tones(500)})], "at least 2"),
        ("mushra", [wrong(), wrong()], "'one'"),
        ("mushra", [wrong(), wrong(name="two", systems={"a": tones(500)})], "'two'"),
        ("mushra", [wrong(rate=7999)], "7999"),
        ("mushra", [wrong(reference=np.zeros(0))], "the reference"),
        ("mushra", [wrong(systems={"a": np.zeros((2, 50))})], "(2, 50)"),
        ("mushra", [wrong(systems={"a": np.array([0.0, np.nan])})], "finite"),
    ],
)
def test_what_makes_no_test_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, trials: list[Trial], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        build_listening_test(tmp_path / "test", kind, "Codecs", trials)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "test").exists()


def test_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        build_listening_test(tmp_path, "mushra", "Codecs", make_trials())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UsageError, match=r"notes\.txt"):
        build_listening_test(tmp_path / "notes.txt", "mushra", "Codecs", make_trials())


# ---- results


def session(
    kind: str, listener: str, scores: dict[str, list[int]], test: str = "test", baseline: str = ""
) -> dict[str, Any]:
    """One listener's answers: scores by system, one for each trial."""
    ratings = [
        {"trial": f"trial {i}", "system": system, "baseline": baseline, "score": score, "position": "1"}
        | {"page": i + 1, "seconds": 2.5}
        for system, column in scores.items()
        for i, score in enumerate(column)
    ]
    head = {"format": "q2d2-listening-1", "test": test, "kind": kind, "title": "Codecs", "listener": listener}
    return head | {"session": f"{kind} {listener}", "finished": "2026-01-01T00:00:00.000Z", "ratings": ratings}


def save_json(path: Path, data: dict[str, Any]) -> Path:
    path.write_text(json.dumps(data))
    return path


def save_csv(path: Path, data: dict[str, Any]) -> Path:
    head = [value for name, value in data.items() if name != "ratings"]
    rows = [[*head, *rating.values(), len(data["ratings"])] for rating in data["ratings"]]
    path.write_text("".join(",".join(map(str, row)) + "\r\n" for row in [CSV_COLUMNS, *rows]), newline="")
    return path


def test_mushra_numbers_by_hand_from_both_formats(tmp_path: Path) -> None:
    ann = session("mushra", "Ann", {HIDDEN_REFERENCE: [100, 100], "fine": [60, 70]})
    bob = session("mushra", "Bob", {HIDDEN_REFERENCE: [90, 100], "fine": [80, 90]})
    result = listening_results([save_json(tmp_path / "ann.json", ann), save_csv(tmp_path / "bob.csv", bob)])
    assert set(result) == {"mushra"}
    assert (result["mushra"]["listeners"], result["mushra"]["trials"]) == (2, 2)
    assert result["mushra"]["excluded"] == []
    # 60 70 80 90: mean 75, standard deviation sqrt(500 / 3) = 12.910, t(0.975, 3) = 3.1824, 3.1824 * 12.910 / 2
    fine = result["mushra"]["systems"]["fine"]
    assert fine["n"] == 4
    assert fine["mean"] == 75
    assert fine["interval95"] == pytest.approx(20.543, abs=0.001)
    assert fine["median"] == 75
    assert fine["quartiles"] == [67.5, 82.5]


def test_single_rating_has_no_interval(tmp_path: Path) -> None:
    path = save_json(tmp_path / "a.json", session("mushra", "Ann", {HIDDEN_REFERENCE: [95], "fine": [60]}))
    entry = listening_results([path])["mushra"]["systems"]["fine"]
    assert (entry["n"], entry["mean"], entry["interval95"]) == (1, 60, None)


def test_listener_who_misses_the_hidden_reference_too_often_is_left_out(tmp_path: Path) -> None:
    """15% of 20 trials is 3: three misses are allowed, the fourth is one too many; 90 is no miss."""
    careful = session("mushra", "Ann", {HIDDEN_REFERENCE: [89] * 3 + [90] * 17, "fine": [50] * 20})
    careless = session("mushra", "Bob", {HIDDEN_REFERENCE: [89] * 4 + [100] * 16, "fine": [100] * 20})
    paths = [save_json(tmp_path / "ann.json", careful), save_csv(tmp_path / "bob.csv", careless)]
    result = listening_results(paths)["mushra"]
    assert result["listeners"] == 1
    assert result["systems"]["fine"]["mean"] == 50
    reason = f"rated the {HIDDEN_REFERENCE} below 90 in 4 of 20 trials"
    assert result["excluded"] == [{"listener": "Bob", "file": str(tmp_path / "bob.csv"), "reason": reason}]


def test_nobody_left_after_screening_is_a_result_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_json(tmp_path / "a.json", session("mushra", "Ann", {HIDDEN_REFERENCE: [10], "fine": [60]}))
    result = listening_results([path])
    assert result["mushra"]["listeners"] == 0
    assert result["mushra"]["systems"] == {}
    show(result)
    assert "left out: Ann" in capsys.readouterr().out


def test_cmos_numbers_by_hand_and_kinds_apart(tmp_path: Path) -> None:
    paths = [
        save_json(tmp_path / "q1.json", session("cmos-q", "Ann", {"b": [-1, 0, 2, -3]}, baseline="a")),
        save_csv(tmp_path / "q2.csv", session("cmos-q", "Bob", {"b": [-1, -1, 0, 0]}, baseline="a")),
        save_json(tmp_path / "p.json", session("cmos-p", "Ann", {"b": [1, 1]}, test="other", baseline="a")),
        save_json(tmp_path / "m.json", session("mushra", "Ann", {HIDDEN_REFERENCE: [99]}, test="third")),
    ]
    result = listening_results(paths)
    assert list(result) == ["mushra", "cmos-q", "cmos-p"]
    quality = result["cmos-q"]
    assert (quality["baseline"], quality["listeners"], quality["trials"]) == ("a", 2, 4)
    # -1 0 2 -3 -1 -1 0 0: mean -0.5, squared deviations sum to 14, sqrt(14 / 7) = 1.4142, t(0.975, 7) = 2.3646
    assert quality["systems"]["b"]["n"] == 8
    assert quality["systems"]["b"]["mean"] == -0.5
    assert quality["systems"]["b"]["interval95"] == pytest.approx(2.3646 * 0.5, abs=0.0001)
    shares = [quality["systems"]["b"][share] for share in ("preferred", "same", "baseline_preferred")]
    assert shares == [0.125, 0.375, 0.5]
    assert result["cmos-p"]["systems"]["b"]["interval95"] == 0
    assert result["mushra"]["listeners"] == 1


def test_a_session_saved_in_both_formats_counts_once(tmp_path: Path) -> None:
    data = session("mushra", "Ann", {HIDDEN_REFERENCE: [100], "fine": [60]})
    both = [save_json(tmp_path / "a.json", data), save_csv(tmp_path / "a.csv", data)]
    assert listening_results(both)["mushra"]["systems"]["fine"]["n"] == 1
    data["ratings"][1]["score"] = 61
    with pytest.raises(Q2D2Error, match=r"b\.json.*a\.json.*differ"):
        listening_results([both[0], save_json(tmp_path / "b.json", data)])


def test_different_tests_and_incomplete_sessions_are_not_mixed(tmp_path: Path) -> None:
    first = save_json(tmp_path / "a.json", session("mushra", "Ann", {HIDDEN_REFERENCE: [100], "fine": [60]}))
    other = save_json(tmp_path / "b.json", session("mushra", "Bob", {HIDDEN_REFERENCE: [100]}, test="another"))
    with pytest.raises(UsageError, match=r"b\.json.*different mushra tests"):
        listening_results([first, other])
    part = save_json(tmp_path / "c.json", session("mushra", "Cid", {HIDDEN_REFERENCE: [100]}))
    with pytest.raises(Q2D2Error, match=r"c\.json.*incomplete"):
        listening_results([first, part])
    with pytest.raises(UsageError, match="name the files"):
        listening_results([])


def cut_last_row(text: str) -> str:
    return "\r\n".join(text.splitlines()[:-1]) + "\r\n"


DAMAGES: dict[str, tuple[str, Callable[[str], str]]] = {
    "json cut": ("json", lambda text: text[:-20]),
    "json of something else": ("json", lambda _: '{"name": "q2d2"}'),
    "json nested beyond reason": ("json", lambda _: '{"a":' + "[" * 200_000),
    "score too high": ("json", lambda text: text.replace('"score": 60', '"score": 101')),
    "score no number": ("json", lambda text: text.replace('"score": 60', '"score": "fine"')),
    "time not finite": ("json", lambda text: text.replace("2.5", "NaN")),
    "no hidden reference": ("json", lambda text: text.replace(HIDDEN_REFERENCE, "other")),
    "rated twice": ("json", lambda text: text.replace('"fine"', f'"{HIDDEN_REFERENCE}"')),
    "csv row missing": ("csv", cut_last_row),
    "csv cut in a row": ("csv", lambda text: text[:-12]),
    "csv of something else": ("csv", lambda _: "time,level\n1,2\n"),
    "csv of two listeners": ("csv", lambda text: text.replace("Ann", "Bob", 1)),
    "csv open quote": ("csv", lambda text: text.replace("Ann", '"Ann')),
    "empty": ("csv", lambda _: ""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_foreign_files_are_named_in_one_line(tmp_path: Path, damage: str) -> None:
    suffix, change = DAMAGES[damage]
    data = session("mushra", "Ann", {HIDDEN_REFERENCE: [100, 95], "fine": [60, 70]})
    path = (save_json if suffix == "json" else save_csv)(tmp_path / f"a.{suffix}", data)
    listening_results([path])
    text = path.read_bytes().decode()
    assert change(text) != text
    path.write_text(change(text), newline="")
    with pytest.raises(Q2D2Error) as caught:
        listening_results([path])
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_audio_and_missing_files_are_named(tmp_path: Path) -> None:
    wav = tmp_path / "a.wav"
    soundfile.write(wav, tones(500), RATE)
    with pytest.raises(Q2D2Error, match=r"a\.wav"):
        listening_results([wav])
    with pytest.raises(UsageError, match=r"b\.csv does not exist"):
        listening_results([tmp_path / "b.csv"])


def test_tables_show_the_numbers_and_take_odd_names_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [
        save_json(tmp_path / "m.json", session("mushra", "[Ann]", {HIDDEN_REFERENCE: [100, 98], "[fine]": [60, 71]})),
        save_json(tmp_path / "q.json", session("cmos-q", "Ann", {"b": [-1, 0]}, baseline="[a]")),
        save_json(tmp_path / "n.json", session("mushra", "[Bob]", {HIDDEN_REFERENCE: [0, 0], "[fine]": [0, 0]})),
    ]
    show(listening_results(paths))
    out = capsys.readouterr().out
    for words in ("Codecs, MUSHRA", "[fine]", "65.5 ±69.9", "62.8 to 68.2", "against [a]", "-0.50 ±6.35", "50%"):
        assert words in out
    assert "left out: [Bob]" in out


# ---- a whole test in a real browser

EAR = """
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  const context = this.context;
  if (target === context.destination) {
    if (!context.ear) {
      context.ear = new AnalyserNode(context, { fftSize: 2048, smoothingTimeConstant: 0 });
      window.heardNow = (frequencies) => {
        const bins = new Float32Array(context.ear.frequencyBinCount);
        context.ear.getFloatFrequencyData(bins);
        const near = (f) => Math.round(f * 2048 / context.sampleRate);
        return frequencies.map((f) => Math.max(...bins.slice(near(f) - 1, near(f) + 2)));
      };
    }
    connect.call(this, context.ear);
  }
  return connect.call(this, target, ...rest);
};
"""
"""Listens to everything that a page sends to the loudspeaker: level in dB at given frequencies."""

FREQUENCIES = sorted({frequency for signal in TONES.values() for frequency in signal})
SOUNDS = {(500, 6000): HIDDEN_REFERENCE, (500,): LOW_ANCHOR} | {TONES[name]: name for name in ("coarse", "fine")}


@pytest.fixture
def browser(browser: Any) -> Any:
    """With an ear for what pages play."""
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": EAR})
    return browser


@pytest.fixture
def serve() -> Iterator[Callable[[Path], str]]:
    """A plain static web server on a folder."""
    servers: list[ThreadingHTTPServer] = []

    def start(folder: Path) -> str:
        class Quiet(SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/index.html"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Listener:
    """Someone at the page, with a mouse, a keyboard and ears."""

    def __init__(self, driver: Any, downloads: Path) -> None:
        self.driver = driver
        self.downloads = downloads

    def until(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, poll_frequency=0.05).until(lambda _: condition())

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def keys(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()

    def position(self) -> float:
        return float(self.find("#time").text.split(" /")[0])

    def pressed(self) -> str:
        return self.find('#trial [aria-pressed="true"]').text.rstrip("✓ ")

    def hear(self, after: tuple[int, ...] = (), known: Collection[tuple[int, ...]] = tuple(SOUNDS)) -> tuple[int, ...]:
        """The frequencies that sound now, once they are those of a known signal and others than `after`."""

        def listen() -> tuple[int, ...]:
            levels = self.driver.execute_script("return window.heardNow?.(arguments[0])", FREQUENCIES)
            return tuple(f for f, level in zip(FREQUENCIES, levels or [], strict=False) if level and level > -50)

        def steady() -> tuple[int, ...] | None:
            first, second = listen(), listen()
            return first if first == second and first in known and first != after else None

        return self.until(steady)

    def ready(self) -> None:
        self.until(lambda: self.find("#play").is_enabled())

    def reload(self) -> None:
        """Back when the page is a new one, its script run: the driver may return while the old one still stands."""
        self.driver.execute_script("window.old = true")
        self.driver.refresh()
        self.until(lambda: self.driver.execute_script("return !window.old && document.readyState === 'complete'"))

    def start(self, name: str, count: int) -> None:
        """Through the first page: name, level, training."""
        self.ready()
        assert not self.find("#next").is_enabled()
        self.click("#reference")
        assert self.hear() == TONES["reference"]
        for slot in range(1, count + 1):
            self.keys(str(slot))
        self.until(lambda: "play" not in self.find("#missing").text)
        assert "your name" in self.find("#missing").text
        assert not self.find("#next").is_enabled()
        self.find("#listener").send_keys(name)
        self.click("#next")
        self.ready()

    def save(self) -> list[Path]:
        """Download both files; their paths."""
        for suffix in ("csv", "json"):
            self.click(f"#{suffix}")
            self.until(lambda suffix=suffix: list(self.downloads.glob(f"*.{suffix}")))
        self.until(lambda: not list(self.downloads.glob("*.crdownload")))
        return sorted(self.downloads.iterdir())

    def faults(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


SCORES = {HIDDEN_REFERENCE: 100, LOW_ANCHOR: 12, "fine": 83, "coarse": 41}


def rate_page(listener: Listener) -> None:
    """Rate a MUSHRA page by ear and keyboard alone: which score goes where is known from the sound only."""
    from selenium.webdriver.common.keys import Keys

    listener.keys("r")
    before = listener.hear()
    assert before == TONES["reference"]
    for slot in range(1, 5):
        listener.keys(str(slot))
        # the hidden reference sounds like the reference itself, so a change can only be awaited for the others
        listener.until(lambda slot=slot: listener.pressed() == str(slot))
        levels_settle(listener)
        score = SCORES[SOUNDS[listener.hear()]]
        assert not listener.find("#next").is_enabled()
        tens, ones = divmod(abs(score - 50), 10)
        ten, one = (Keys.PAGE_UP, Keys.ARROW_UP) if score > 50 else (Keys.PAGE_DOWN, Keys.ARROW_LEFT)
        listener.keys(*[ten] * tens, *[one] * ones)
        assert listener.find(".row.active output").text == str(score)


def levels_settle(listener: Listener) -> None:
    """Wait until the analyser's window holds only what came after the last switch: ten windows of audio time."""
    clock = "return player.context.currentTime"
    then = listener.driver.execute_script(clock)
    listener.until(lambda: listener.driver.execute_script(clock) > then + 10 * 2048 / 48_000)


def test_mushra_from_a_disk_with_a_reload_in_between(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    index = build_listening_test(tmp_path / "test", "mushra", 'Codecs, "old" & new', make_trials())
    browser.get(index.as_uri())
    listener = Listener(browser, tmp_path / "downloads")
    assert listener.find("h1").text == 'Codecs, "old" & new'
    listener.start("Ann, of Ulm", 4)
    for secret in ("fine", "coarse", HIDDEN_REFERENCE, LOW_ANCHOR):
        assert secret not in listener.find("body").text
    assert listener.find("#count").text == "Page 1 of 2"

    rate_page(listener)
    listener.click(".row:nth-child(2) button")
    assert listener.pressed() == "2"
    assert listener.find("#play").text == "Pause"
    listener.keys(" ")
    assert listener.find("#play").text == "Play"
    held = listener.position()
    listener.keys("3")
    listener.until(lambda: listener.position() != held)
    ratings = [output.text for output in browser.find_elements("css selector", ".row output")]
    assert sorted(ratings) == sorted(str(score) for score in SCORES.values())

    listener.reload()
    listener.ready()
    assert listener.find("#who").text == "Listener: Ann, of Ulm"
    assert [output.text for output in browser.find_elements("css selector", ".row output")] == ratings
    assert listener.find("#next").is_enabled()
    listener.keys(Keys.ENTER)
    listener.until(lambda: listener.find("#count").text == "Page 2 of 2")
    listener.ready()
    listener.keys(Keys.ENTER)
    assert listener.find("#count").text == "Page 2 of 2"  # not heard, not rated

    rate_page(listener)
    listener.keys(Keys.ENTER)
    listener.until(lambda: listener.find("#end").is_displayed())
    listener.reload()
    listener.until(lambda: listener.find("#end").is_displayed())

    csv_path, json_path = listener.save()
    assert (csv_path.suffix, json_path.suffix) == (".csv", ".json")
    result = listening_results([csv_path])
    assert result == listening_results([json_path]) == listening_results([csv_path, json_path])
    mushra = result["mushra"]
    assert (mushra["title"], mushra["listeners"], mushra["trials"]) == ('Codecs, "old" & new', 1, 2)
    assert {name: (entry["n"], entry["mean"], entry["interval95"]) for name, entry in mushra["systems"].items()} == {
        name: (2, score, 0) for name, score in SCORES.items()
    }
    assert json.loads(json_path.read_text("utf-8"))["listener"] == "Ann, of Ulm"
    assert listener.faults() == []

    listener.click("#restart")
    browser.switch_to.alert.accept()
    listener.until(lambda: listener.find("#intro").is_displayed())
    listener.reload()
    listener.ready()
    assert listener.find("#intro").is_displayed()


@pytest.mark.parametrize("kind", ["cmos-q", "cmos-p"])
def test_cmos_from_a_web_server_with_the_mouse_and_keys(
    browser: Any, serve: Callable[[Path], str], tmp_path: Path, kind: str
) -> None:
    """The listener finds `fine` two steps better than `coarse` on one page and three on the next, whichever is B."""
    from selenium.webdriver.common.keys import Keys

    index = build_listening_test(tmp_path / "test", kind, "Codecs", make_trials())
    browser.get(serve(index.parent))
    listener = Listener(browser, tmp_path / "downloads")
    listener.start("Bob", 2)
    aspect = {"cmos-q": "clarity", "cmos-p": "pauses"}[kind]
    for page, steps in ((1, 2), (2, 3)):
        assert listener.find("#count").text == f"Page {page} of 2"
        assert aspect in listener.find("#question").text.split(".")[0]
        listener.click("#reference")
        assert listener.hear() == TONES["reference"]
        listener.keys("a")
        first = SOUNDS[listener.hear(after=TONES["reference"])]
        listener.keys("2")
        second = SOUNDS[listener.hear(after=TONES[first])]
        assert {first, second} == {"fine", "coarse"}
        assert not listener.find("#next").is_enabled()
        sign = 1 if second == "fine" else -1
        if page == 1:
            listener.keys(*([Keys.ARROW_RIGHT if sign > 0 else Keys.ARROW_LEFT] * steps))
        else:
            listener.click(f"#choices label:nth-child({4 + sign * steps})")
        if page == 1:
            listener.keys(Keys.ENTER)
        else:
            listener.click("#next")
        listener.until(lambda page=page: listener.find("#count").text != f"Page {page} of 2")
        if page == 1:
            listener.ready()
    result = listening_results(listener.save())[kind]
    assert (result["baseline"], result["listeners"], result["trials"]) == ("fine", 1, 2)
    coarse = result["systems"]["coarse"]
    assert (coarse["n"], coarse["mean"], coarse["baseline_preferred"]) == (2, -2.5, 1)
    assert listener.faults() == []


def test_a_switch_goes_on_at_the_same_position(browser: Any, tmp_path: Path) -> None:
    """Every signal changes its tone after a second: who switches later must not hear the beginning again."""

    def signal(first: int, then: int) -> np.ndarray:
        return np.concatenate([tones(first, samples=RATE), tones(then, samples=20 * RATE)])

    trial = Trial("one", RATE, signal(500, 6000), {"a": signal(1000, 2000), "b": signal(1000, 3000)})
    index = build_listening_test(tmp_path / "test", "cmos-q", "Codecs", [trial])
    browser.get(index.as_uri())
    listener = Listener(browser, tmp_path / "downloads")
    listener.ready()
    known = [(500,), (1000,), (2000,), (3000,), (6000,)]
    listener.keys("r")
    assert listener.hear(after=(500,), known=known) == (6000,)
    listener.keys("a")
    first = listener.hear(after=(6000,), known=known)
    listener.keys("b")
    second = listener.hear(after=first, known=known)
    assert {first, second} == {(2000,), (3000,)}


def test_every_listener_meets_pages_and_recordings_in_an_order_of_their_own(browser: Any, tmp_path: Path) -> None:
    index = build_listening_test(tmp_path / "test", "mushra", "Codecs", make_trials())
    browser.get(index.as_uri())
    Listener(browser, tmp_path / "downloads").ready()
    orders = [browser.execute_script("begin('Ann'); return state.order") for _ in range(40)]
    for order in orders:
        assert sorted(entry["page"] for entry in order) == [0, 1]
        assert all(sorted(entry["systems"]) == sorted(SCORES) for entry in order)
    assert {order[0]["page"] for order in orders} == {0, 1}
    assert {order[0]["systems"][0] for order in orders} == set(SCORES)


def test_missing_audio_is_said_on_the_page(browser: Any, tmp_path: Path) -> None:
    index = build_listening_test(tmp_path / "test", "mushra", "Codecs", make_trials(("one",)))
    (index.parent / "audio" / "0003.js").unlink()
    browser.get(index.as_uri())
    listener = Listener(browser, tmp_path / "downloads")
    listener.until(lambda: "audio/0003.js" in listener.find("#alert").text)
    assert not listener.find("#play").is_enabled()
