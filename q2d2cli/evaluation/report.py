"""The HTML report of an evaluation: one file with tables, plots, spectrograms and audio in it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from q2d2cli.audio import read_original
from q2d2cli.evaluation.clips import Clip
from q2d2cli.evaluation.codecs import ChannelSubject, Q2D2Subject
from q2d2cli.evaluation.metrics import METRICS
from q2d2cli.evaluation.plots import channel_quality, distributions, rate_quality, spectrogram, to_svg, used_band
from q2d2cli.evaluation.scoring import ScoreRow, codes_of
from q2d2cli.evaluation.subjects import Original, Subject
from q2d2cli.evaluation.tables import codebook_table, scope, score_table, to_html

EXAMPLE_SECONDS = 10.0
"""At most so much of a clip is put into the report."""

STYLE = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#5c6370;--line:#d9dce3;--paper:#fff;--panel:#f6f7f9;--accent:#0f6fb0}
@media(prefers-color-scheme:dark){:root{--ink:#e4e6eb;--soft:#9aa1ad;--line:#343a46;--paper:#14171c;--panel:#1c2027;
--accent:#6ab7ec}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,sans-serif}
main{max-width:1120px;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.7rem;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.6rem 0 .8rem}h3{font-size:1rem;margin:1.6rem 0 .5rem}
p{color:var(--soft);margin:.25rem 0 1rem;max-width:75ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92rem}
th,td{padding:.4rem .7rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft)}th:first-child,td:first-child{text-align:left}
td small{color:var(--soft);font-size:.8em}td.best{font-weight:650;color:var(--accent)}
svg{max-width:100%;height:auto}
details{border:1px solid var(--line);border-radius:8px;padding:.6rem .9rem;margin:.8rem 0;background:var(--panel)}
summary{cursor:pointer;font-weight:600}
.clips{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:.9rem}
figure{margin:0;background:var(--panel);border:1px solid var(--line);border-radius:8px;overflow:hidden}
figure svg{display:block;width:100%}
figcaption{padding:.5rem .7rem .2rem;font-size:.9rem;font-weight:600}
figure .scores{padding:0 .7rem;color:var(--soft);font-size:.8rem;min-height:1.3em}
caption{text-align:left;color:var(--soft);padding:.4rem .7rem}
.switch{display:flex;flex-wrap:wrap;gap:.4rem;margin:.2rem 0 .8rem}
button{font:inherit;font-size:.9rem;color:inherit;background:var(--panel);border:1px solid var(--line);border-radius:6px
;padding:.25rem .7rem;cursor:pointer}
button.on{border-color:var(--accent);color:var(--accent);font-weight:600}
figure.on{border-color:var(--accent)}
audio{display:block;width:calc(100% - 1.4rem);margin:.4rem .7rem .7rem;height:34px}
"""


SCRIPT = """
for (const example of document.querySelectorAll(".example")) {
  const players = [...example.querySelectorAll("audio")];
  const buttons = [...example.querySelectorAll("button")];
  let current = null;
  const mark = () => players.forEach((player, i) => {
    buttons[i].classList.toggle("on", player === current);
    buttons[i].setAttribute("aria-pressed", player === current);
    player.closest("figure").classList.toggle("on", player === current);
  });
  // The one that plays hands its place to the next and stops.
  const take = next => {
    if (current && current !== next) {
      const place = current.ended ? 0 : current.currentTime;
      current.pause();
      const seek = () => { next.currentTime = Math.min(place, next.duration || place); };
      next.readyState ? seek() : next.addEventListener("loadedmetadata", seek, {once: true});
    }
    current = next;
    mark();
  };
  players.forEach((player, i) => {
    player.addEventListener("play", () => { if (player !== current) take(player); });
    buttons[i].addEventListener("click", () => { take(player); player.play(); });
  });
  mark();
}
"""


def write_report(
    result: dict[str, Any], rows: Sequence[ScoreRow], subjects: Sequence[Subject], clips: Sequence[Clip]
) -> str:
    """The report.

    Args:
        result: of `evaluate.sum_up`.
        rows: of `evaluate.evaluate`.
        subjects: the codecs; they run once more on the example clips.
        clips: all clips.

    Returns:
        HTML that needs nothing else.
    """
    parts = [
        f"<h1>{len(result['codecs'])} codecs, {result['files']} clips</h1>",
        f"<p>{scope(result)}. Means over clips with their 95% intervals; n is the number "
        "of clips for which a metric is defined, where that is not all. Bold is what is better than every other codec "
        "by more than both intervals. Bit rates are those of the coded audio without headers; tokens per frame are "
        "the papers' N<sub>q</sub>, the number of codebooks that each frame takes a token of.</p>",
        *[f"<p><strong>Skipped:</strong> {html.escape(reason)}</p>" for reason in result["skipped"][:20]],
        *[f"<p><strong>Failed:</strong> {html.escape(r)}</p>" for c in result["codecs"] for r in c["failed"][:5]],
        to_html(score_table(result)),
    ]
    if (figure := rate_quality(result)) is not None:
        parts += ["<h2>Quality against bit rate</h2>", f'<div class="scroll">{to_svg(figure)}</div>']
    if (figure := channel_quality(result)) is not None:
        parts += [
            "<h2>Over a bad channel</h2>",
            "<p>Dashed: without errors. A packed payload is here decoded by force, errors and all; "
            "<code>q2d2 decode</code> refuses it.</p>",
            f'<div class="scroll">{to_svg(figure)}</div>',
        ]
    if (figure := distributions(result, rows)) is not None:
        parts += [
            "<h2>Distributions</h2>",
            "<p>Boxes hold the middle half of the clips, the line is the median.</p>",
            f'<div class="scroll">{to_svg(figure)}</div>',
        ]
    datasets = [name for name in result["codecs"][0]["datasets"] if name != "all"]
    if datasets:
        parts.append("<h2>By dataset</h2>")
        parts += [
            f"<details><summary>{html.escape(name)}</summary>{to_html(score_table(result, [name]))}</details>"
            for name in datasets
        ]
    parts += [codebooks(result), examples(result, rows, subjects, clips)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Speech codecs compared</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def codebooks(result: dict[str, Any]) -> str:
    """How q2d2's models use their codebooks; empty if there are none."""
    tables = [to_html(codebook_table(codec)) for codec in result["codecs"] if "pair_entropy" in codec]
    return "".join(["<h2>Use of the codebook</h2>", *tables]) if tables else ""


def pick_examples(metric: str, codec: str, rows: Sequence[ScoreRow]) -> list[tuple[str, str]]:
    """Title and clip name of the best, the median and the worst clip of a codec."""
    scored = [
        (value, row["clip"])
        for row in rows
        if row["codec"] == codec and row["seconds"] >= 1.0 and (value := row["scores"].get(metric)) is not None
    ]
    scored.sort(reverse=METRICS[metric].higher_is_better)
    chosen: dict[str, str] = {}
    for title, place in (("Best", 0), ("Median", len(scored) // 2), ("Worst", -1)):
        if scored and scored[place][1] not in chosen:
            chosen[scored[place][1]] = title
    return [(title, clip) for clip, title in chosen.items()]


def examples(
    result: dict[str, Any], rows: Sequence[ScoreRow], subjects: Sequence[Subject], clips: Sequence[Clip]
) -> str:
    """Players and spectrograms of the best, median and worst clip."""
    ranked = [s for s in subjects if not isinstance(s, Original | ChannelSubject)]
    metric = next((m for m in ("pesq", "stoi", *result["metrics"]) if m in result["metrics"]), None)
    if not ranked or metric is None:
        return ""
    leader = ranked[0]
    by_name = {clip.name: clip for clip in clips}
    parts = [
        "<h2>Listen</h2>",
        f"<p>The clips for which {html.escape(leader.name)} has the best, the median and the worst "
        f"{html.escape(METRICS[metric].title)}, of those longer than a second; the first {EXAMPLE_SECONDS:.0f} s "
        "of each. The buttons switch while it plays, at the same place. Spectrograms end where the recording does, at "
        "most at 12 kHz.</p>",
    ]
    for title, name in pick_examples(metric, leader.identity, rows):
        audio, rate = read_original(by_name[name].path)
        audio = audio[: int(EXAMPLE_SECONDS * rate)]
        band = used_band(audio, rate)
        cards, titles = [card("recording", "", audio, rate, band)], ["recording"]
        for subject in ranked:
            row = next(r for r in rows if r["codec"] == subject.identity and r["clip"] == name)
            scores = " · ".join(
                f"{METRICS[m].title} {v:.{METRICS[m].decimals}f}" for m, v in row["scores"].items() if v is not None
            )
            try:
                decoded = example(subject, row, audio, rate)
            except Exception:  # told where it was scored
                continue
            cards.append(card(subject.name, scores, decoded, rate, band))
            titles.append(subject.name)
        buttons = "".join(f'<button type="button">{html.escape(title)}</button>' for title in titles)
        parts.append(
            f'<h3>{title}: {html.escape(name)}</h3><div class="example"><div class="switch" role="group" '
            f'aria-label="Switch between recording and codecs">{buttons}</div>'
            f'<div class="clips">{"".join(cards)}</div></div>'
        )
    return "".join([*parts, f"<script>{SCRIPT}</script>"])


def example(subject: Subject, row: ScoreRow, audio: np.ndarray, rate: int) -> np.ndarray:
    """What a codec makes of the beginning of a clip; of the codes it was scored with, where the row keeps them."""
    if isinstance(subject, Q2D2Subject) and (codes := codes_of(row, subject.codec.quantizer.sizes)) is not None:
        # A search for them again would take minutes.
        return subject.recall(codes, rate, len(audio))
    return subject.reconstruct(audio, rate, Path(row["clip"])).audio


def card(title: str, scores: str, audio: np.ndarray, rate: int, band: float) -> str:
    """One player under its spectrogram, which ends at `band` Hz."""
    out = io.BytesIO()
    soundfile.write(out, audio, rate, format="FLAC", subtype="PCM_16")
    source = "data:audio/flac;base64," + base64.b64encode(out.getvalue()).decode()
    name = html.escape(title)
    return (
        f'<figure><div class="picture" role="img" aria-label="Spectrogram: {name}">{spectrogram(audio, rate, band)}'
        f"</div><figcaption>{name}</figcaption>"
        f"<div class=scores>{html.escape(scores)}</div>"
        f'<audio controls preload="auto" src="{source}" aria-label="{name}"></audio></figure>'
    )
