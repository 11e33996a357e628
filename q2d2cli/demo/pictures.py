"""What the demo page shows of a round trip, as HTML and SVG; `page.css` and `page.js` go with it."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable

import numpy as np
import soundfile
from matplotlib.image import imsave

from q2d2cli.demo.roundtrip import RoundTrip, Sizes
from q2d2cli.evaluation.pictures import voronoi_cells
from q2d2cli.evaluation.plots import FLOOR, SPECTROGRAM_DB, levels, used_band
from q2d2cli.quantizers.geometry import points

GRID_SIZE = 260
"""Side of a grid's picture, in its own units."""
MOST_POINTS = 1000
"""Of a grid that is drawn."""
TRAIL_FRAMES = 10
"""How much of the path over a grid is drawn behind the point that is heard."""
FIRST_TOKENS = 12
"""That are shown as numbers."""
PAYLOADS = {
    "coded": ("entropy coded", "a context model predicts each index"),
    "packed": ("packed", "indices in mixed radix, no prediction"),
    "robust": ("robust", "each index in bits of its own"),
}
"""Name and meaning of each payload mode."""


def result(trip: RoundTrip) -> str:
    """Everything there is to see and hear of a round trip."""
    parts: list[Callable[[RoundTrip], str]] = [headline, players, grids, bits]
    return f'<div class="q2-result">{"".join(part(trip) for part in parts)}</div>'


def headline(trip: RoundTrip) -> str:
    """The numbers that matter, in four tiles, and what was done to the clip."""
    seconds, sizes = trip.tokens.duration, trip.sizes[trip.payload]
    pcm = 2 * len(trip.original) / sizes.total
    codebook = trip.tokens.header.quantizer.codebook_size
    speed = f"{trip.encode_seconds:.1f} s to encode"
    if trip.decoded is not None:
        speed += f", {trip.decode_seconds:.1f} s to decode"
    tiles = [
        (f"{kilobits(sizes.payload, seconds):.2f}", "kbit/s", f"payload; {kilobits(sizes.total, seconds):.2f} in all"),
        (f"1/{pcm:.0f}", "of PCM", f"{sizes.total:,} bytes for {seconds:.1f} s of 16 bits at {trip.rate:,} Hz"),
        (f"{trip.tokens.frame_rate:.1f}", "tokens/s", f"each one of {codebook:,}"),
        (f"{seconds / max(trip.encode_seconds, 1e-3):.1f}×", "real time", f"{speed}, on this computer"),
    ]
    cells = "".join(
        f'<div class="q2-tile"><b>{value} <small>{unit}</small></b><span>{text}</span></div>'
        for value, unit, text in tiles
    )
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in trip.notes)
    return f'<div class="q2-tiles">{cells}</div>{notes}'


def players(trip: RoundTrip) -> str:
    """Original and decoded side by side, each with its spectrogram, and buttons that switch while it plays."""
    band = used_band(trip.original, trip.rate)
    cards = [card("original", "Original", trip.original, trip, band)]
    if trip.decoded is None:
        cards.append(
            f'<div class="q2-card q2-refused"><h3>Decoded</h3><p><b>Refused.</b> {html.escape(trip.refusal)}</p>'
            "<p>A plain payload is all or nothing. Tick <em>robust payload</em> to keep bit errors small, or "
            "<em>conceal</em> to play what is left.</p></div>"
        )
    else:
        cards.append(card("decoded", f"Decoded, {trip.tokens.header.model}", trip.decoded, trip, band))
    disabled = " disabled" if trip.decoded is None else ""
    return (
        '<section><div class="q2-bar"><h2>Listen</h2>'
        '<button type="button" class="q2-play" aria-label="Play or pause">▶ Play</button>'
        '<span class="q2-switch" role="group" aria-label="What is heard">'
        '<button type="button" data-which="original">Original</button>'
        f'<button type="button" data-which="decoded"{disabled}>Decoded</button></span>'
        '<span class="q2-hint">Switch while it plays: the place is kept.</span></div>'
        f'<div class="q2-cards">{"".join(cards)}</div></section>'
    )


def card(which: str, title: str, audio: np.ndarray, trip: RoundTrip, band: float) -> str:
    """A spectrogram up to `band` Hz, what was damaged under it, and the audio."""
    file = io.BytesIO()
    soundfile.write(file, audio, trip.rate, format="WAV", subtype="PCM_16")
    kilohertz = band / 1000
    marks = "".join(
        f'<i style="left:{100 * fault.start / trip.tokens.duration:.2f}%;'
        f'width:{100 * fault.duration / trip.tokens.duration:.2f}%" '
        f'title="{html.escape(str(fault))}"></i>'
        for fault in (trip.faults if which == "decoded" else ())
        if fault.duration
    )
    strip = f'<div class="q2-faults" title="red: blocks that were hit">{marks}</div>' if marks else ""
    return (
        f'<figure class="q2-card" data-which="{which}"><h3>{html.escape(title)}</h3>'
        f'<div class="q2-spectrogram"><img alt="Spectrogram, {which}" src="{spectrogram(audio, trip.rate, band)}">'
        f'<i class="q2-head"></i><span class="q2-top">{kilohertz:g} kHz</span>'
        f'<span class="q2-end">{len(audio) / trip.rate:.1f} s</span></div>{strip}'
        f'<audio controls preload="auto" src="{data_url("audio/wav", file.getvalue())}" aria-label="{which}"></audio>'
        "</figure>"
    )


def spectrogram(audio: np.ndarray, rate: int, band: float) -> str:
    """Spectrogram up to `band` Hz without axes, as the address of a PNG; 80 dB deep."""
    level, top = levels(audio, rate)
    shown = level[: max(1, round(len(level) * band / top))]
    file = io.BytesIO()
    imsave(file, shown, origin="lower", vmin=FLOOR, vmax=FLOOR + SPECTROGRAM_DB, cmap="magma", format="png")
    return data_url("image/png", file.getvalue())


def grids(trip: RoundTrip) -> str:
    """Each pair's grid with the use of its points and the path over it, and the points in their order in time."""
    spec = trip.tokens.header.quantizer
    if not spec.is_grid or max(spec.sizes) > MOST_POINTS:
        what = "has no two-dimensional grids" if not spec.is_grid else f"has up to {max(spec.sizes)} points a grid"
        return f"<section><h2>Tokens</h2><p>This model {what}: there is nothing to draw.</p></section>"
    indices = trip.tokens.indices[0].numpy()
    panels, strips, places = [], [], []
    for number, group in enumerate(spec.groups):
        grid = points(spec.kind, *group)
        used = np.bincount(indices[:, number], minlength=len(grid))
        colours = colours_of(grid)
        picture, place = grid_picture(grid, used, colours)
        shares = used[used > 0] / used.sum()
        panels.append(
            f'<figure class="q2-grid">{picture}<figcaption><b>Pair {number}</b> {np.count_nonzero(used)} of '
            f"{len(grid)} points used, {-(shares * np.log2(shares)).sum():.2f} of {np.log2(len(grid)):.2f} bits"
            "</figcaption></figure>"
        )
        file = io.BytesIO()
        imsave(file, colours[indices[:, number]][None], format="png")
        strips.append(f'<img alt="Pair {number} over time" src="{data_url("image/png", file.getvalue())}">')
        places.append(np.round(place, 1).tolist())
    facts = {
        "rate": trip.tokens.frame_rate,
        "trail": TRAIL_FRAMES,
        "places": places,
        "indices": indices.T.tolist(),
    }
    numbers = ", ".join(str(token) for token in trip.tokens.tokens[0, :FIRST_TOKENS].tolist())
    return (
        f'<section class="q2-tokens" data-facts="{html.escape(json.dumps(facts, separators=(",", ":")))}">'
        f"<h2>Tokens on their grids</h2><p>Every {1000 / trip.tokens.frame_rate:.1f} ms the encoder snaps "
        f"{len(spec.groups)} pairs of numbers, each to a point of its {html.escape(spec.kind)} grid; together they are "
        "one token. Cells are as bright as they are used, a point has the colour of its place, and the line is the "
        "path of what is being heard.</p>"
        f'<div class="q2-grids">{"".join(panels)}</div>'
        f'<div class="q2-strips" title="one column a frame, in the colour of its point">{"".join(strips)}'
        '<i class="q2-head"></i></div>'
        f'<p class="q2-numbers"><code>tokens: {numbers}{", …" if len(indices) > FIRST_TOKENS else ""}</code></p>'
        "</section>"
    )


def grid_picture(grid: np.ndarray, used: np.ndarray, colours: np.ndarray) -> tuple[str, np.ndarray]:
    """One grid as SVG, and where `(G, 2)` its points lie in it.

    Args:
        grid: `(G, 2)` points.
        used: `(G,)` how often each was used.
        colours: `(G, 3)` in [0, 1].
    """
    cells = voronoi_cells(grid)
    low, high = np.concatenate(cells).min(0), np.concatenate(cells).max(0)
    scale = GRID_SIZE / float((high - low).max())
    width, height = (high - low) * scale

    def place(where: np.ndarray) -> np.ndarray:
        # The second coordinate upwards, as on paper.
        return np.stack([(where[:, 0] - low[0]) * scale, (high[1] - where[:, 1]) * scale], axis=1)

    share = np.sqrt(used / max(1, used.max()))
    polygons, dots = [], []
    for number, (cell, point) in enumerate(zip(cells, place(grid), strict=True)):
        # Around the point, whatever order the corners come in.
        centre = cell.mean(0)
        corners = place(cell[np.argsort(np.arctan2(*(cell - centre).T))])
        outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
        colour = "#" + "".join(f"{round(255 * part):02x}" for part in colours[number])
        filling = f' style="fill:{colour};fill-opacity:{0.12 + 0.88 * share[number]:.2f}"' if used[number] else ""
        about = f"<title>point {number}: {used[number]} times</title>"
        polygons.append(f'<polygon points="{outline}"{filling}>{about}</polygon>')
        dots.append(f'<circle cx="{point[0]:.1f}" cy="{point[1]:.1f}" r="1.3"/>')
    return (
        f'<svg viewBox="-4 -4 {width + 8:.1f} {height + 8:.1f}" role="img" aria-label="Grid, use of its points">'
        f'<g class="q2-cells">{"".join(polygons)}</g><g class="q2-dots">{"".join(dots)}</g>'
        '<g class="q2-trail"></g><circle class="q2-now" r="6" cx="-99" cy="-99"/></svg>'
    ), place(grid)


def colours_of(grid: np.ndarray) -> np.ndarray:
    """`(G, 3)` a colour in [0, 1] for each of `(G, 2)` points: its hue by the direction, the stronger the farther out.

    In Oklab (Björn Ottosson, 2020), so that directions look equally bright.
    """
    radius = np.hypot(grid[:, 0], grid[:, 1])
    chroma = 0.15 * radius / max(radius.max(), 1e-9)
    angle = np.arctan2(grid[:, 1], grid[:, 0])
    lab = np.stack([np.full(len(grid), 0.7), chroma * np.cos(angle), chroma * np.sin(angle)], axis=1)
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    linear = np.clip((lab @ to_cones.T) ** 3 @ to_rgb.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def bits(trip: RoundTrip) -> str:
    """Where the bits of the file went, and where they would have gone in the other payload modes."""
    seconds, largest = trip.tokens.duration, max(sizes.total for sizes in trip.sizes.values())
    rows = []
    for payload, sizes in trip.sizes.items():
        name, meaning = PAYLOADS[payload]
        sent = payload == trip.payload
        rows.append(
            f'<div class="q2-row{" q2-sent" if sent else ""}"><div class="q2-name"><b>{name}</b>'
            f"<span>{'this file: ' if sent else ''}{meaning}</span></div>"
            f'<div class="q2-track">{"".join(pieces(sizes, largest))}</div>'
            f'<div class="q2-sum"><b>{kilobits(sizes.total, seconds):.2f} kbit/s</b>'
            f"<span>{sizes.payload:,} + {sizes.checksums:,} + {sizes.header:,} bytes</span></div></div>"
        )
    saving = ""
    if {"coded", "packed"} <= set(trip.sizes):
        saved = 1 - trip.sizes["coded"].payload / trip.sizes["packed"].payload
        saving = f"<p>Entropy coding saved {saved:.0%} of the payload; the tokens are the same.</p>"
    return (
        '<section><h2>Where the bits went</h2><p class="q2-legend"><i class="q2-payload"></i>pair indices'
        '<i class="q2-checksums"></i>block heads and checksums<i class="q2-header"></i>header and end</p>'
        f"{''.join(rows)}{saving}</section>"
    )


def pieces(sizes: Sizes, largest: int) -> list[str]:
    """The three parts of one bar."""
    return [
        f'<i class="q2-{name}" style="width:{100 * size / largest:.2f}%" title="{name}: {size:,} bytes"></i>'
        for name, size in (("payload", sizes.payload), ("checksums", sizes.checksums), ("header", sizes.header))
    ]


def kilobits(size: int, seconds: float) -> float:
    """So many bytes as kbit/s."""
    return 8 * size / seconds / 1000


def data_url(kind: str, data: bytes) -> str:
    """The address of data that stands in the page itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
