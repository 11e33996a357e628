"""The demo page in a browser: Gradio's components, a server of its own, and no word to any other host."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from q2d2cli.checkpoints import DEFAULT_MODEL, available, newest
from q2d2cli.errors import Q2D2Error, UsageError, say

HERE = Path(__file__).parent
SAMPLE = HERE.parent.parent / "examples" / "librivox.wav"
"""In a checkout; an installed package has none."""
MOST_BYTES = "64mb"
"""Of an uploaded clip."""
MOST_ROUNDS = 20
"""Of a search for better tokens."""
NO_OTHER_HOST = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; worker-src 'self' blob:"
)
"""What the browser may load, whatever Gradio's page names."""
LOGO = "".join(f'<circle cx="{x}" cy="{y}" r="3"/>' for x in (16, 32, 48) for y in (16, 32, 48)) + "".join(
    f'<circle cx="{x}" cy="{y}" r="3"/>' for x in (24, 40) for y in (24, 40)
)
"""A rhombic grid of three levels."""
TITLE = f"""
<div class="q2-title">
<svg viewBox="0 0 64 64" aria-hidden="true"><rect width="64" height="64" rx="15" fill="#4338ca"/>
<g fill="#fff" opacity=".6">{LOGO}</g><circle cx="40" cy="24" r="6.5" fill="#fbbf24"/></svg>
<div><h1>q2d2</h1>
<p>Speech as points on grids: 1 to 7 kbit/s, one token a frame. Everything runs on this computer.</p></div>
</div>
"""


def listen(host: str, port: int) -> socket.socket:
    """A socket that the page can be served on.

    Args:
        host: name or address of this computer; `127.0.0.1` is for itself alone, `0.0.0.0` for all that can reach it.
        port: 0 for any that is free.

    Raises:
        UsageError: if the port is in use or not allowed, or the host is none of this computer's.
    """
    if not host or not host.isascii():  # an empty name would stand for all
        raise UsageError(f"--host {host!r} is no name or address: give 127.0.0.1 or another of this computer's")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host} cannot be found: give 127.0.0.1 or another address of this computer"
        ) from error
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()
    except OSError as error:
        server.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(f"port {port} of {host} is in use: choose another with --port, or 0 for any") from error
        if error.errno == errno.EACCES:
            raise UsageError(f"port {port} is not allowed for you: choose one from 1024 on with --port") from error
        raise UsageError(f"cannot listen on {host}, port {port}: {error.strerror}") from error
    return server


def serve(server: socket.socket, device: str = "auto", quiet: bool = False) -> None:
    """Serve the page on a listening socket until Ctrl-C.

    Args:
        server: of `listen`.
        device: as `Codec.from_pretrained` takes it.
        quiet: whether not to say where the page is.

    Raises:
        UsageError: if there is no model here.
    """
    if newest(DEFAULT_MODEL) is None and not available():
        raise UsageError("no models here: set Q2D2_MODELS to a folder of models, or get one with q2d2 models pull")
    with server, tempfile.TemporaryDirectory(prefix="q2d2-demo-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when it is imported
        import gradio
        import uvicorn
        from fastapi import FastAPI

        app = FastAPI()

        async def keep_inside(request: Any, call_next: Callable[[Any], Any]) -> Any:
            response = await call_next(request)
            response.headers["Content-Security-Policy"] = NO_OTHER_HOST
            return response

        app.middleware("http")(keep_inside)
        gradio.mount_gradio_app(
            app,
            build(device, Path(folder)),
            "/",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            max_file_size=MOST_BYTES,
            theme=theme(),
            css=(HERE / "page.css").read_text("utf-8"),
            head=f"<script>{(HERE / 'page.js').read_text('utf-8')}</script>",
        )
        host, port = server.getsockname()[:2]
        if not quiet:
            say(f"q2d2 demo: http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it)")
        try:
            uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)).run(sockets=[server])
        except KeyboardInterrupt:
            return


def theme() -> Any:
    """Gradio's plainest theme in the page's colours, with fonts that are there."""
    import gradio

    return gradio.themes.Base(
        primary_hue="indigo",
        neutral_hue="slate",
        radius_size="lg",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    ).set(
        body_background_fill="#f5f6f9",
        body_background_fill_dark="#0e1016",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171a22",
        block_border_color="#e2e4ea",
        block_border_color_dark="#2a2f3c",
        block_border_width="1px",
        button_primary_background_fill="#4338ca",
        button_primary_background_fill_hover="#3730a3",
        button_primary_background_fill_dark="#6366f1",
        button_primary_text_color="#ffffff",
    )


def build(device: str, folder: Path) -> Any:
    """The page.

    Args:
        device: as `Codec.from_pretrained` takes it.
        folder: for the .q2d files that are made.
    """
    import gradio

    from q2d2cli.codec import Codec
    from q2d2cli.demo.pictures import result
    from q2d2cli.demo.roundtrip import LONGEST_SECONDS, Damage, round_trip

    here = available()
    chosen = newest(DEFAULT_MODEL) or here[0]
    models = [(f"{c.folder.name}, {c.config.bit_rate / 1000:.1f} kbit/s", c.folder.name) for c in here]
    codec_for = lru_cache(maxsize=2)(Codec.from_pretrained)

    def run(
        clip: str | None,
        model: str,
        effort: int,
        kind: str,
        flips: float,
        loss: float,
        robust: bool,
        conceal: bool,
        progress: Any = gradio.Progress(),  # noqa: B008 - how Gradio asks for it
    ) -> tuple[str, Any]:
        if clip is None:
            raise gradio.Error("Upload a clip or record one first.", title="No clip yet", print_exception=False)
        damage = None
        if kind == "bits":
            damage = Damage("bits", flips, robust, conceal)
        elif kind == "packets":
            damage = Damage("packets", loss / 100, robust, conceal)
        try:
            progress(0.0, desc=f"Loading {model}")
            codec = codec_for(model, device)
            trip = round_trip(codec, Path(clip), effort, damage, lambda done: progress(done, desc="Encoding"))
            progress(1.0, desc="Drawing")
            page = result(trip)
        except Q2D2Error as error:
            text = str(error).replace(clip, "the clip")
            raise gradio.Error(text, title="This does not work", print_exception=False) from error
        path = Path(tempfile.mkdtemp(dir=folder)) / f"{model}.q2d"
        path.write_bytes(trip.data)
        return page, gradio.update(value=str(path), visible=True)

    def show_damage(kind: str) -> list[Any]:
        wanted = (kind == "bits", kind == "packets", kind != "none", kind != "none")
        return [gradio.update(visible=visible) for visible in wanted]

    with gradio.Blocks(title="q2d2", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.HTML(TITLE)
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=5):
                clip = gradio.Audio(
                    label=f"Your clip, up to {LONGEST_SECONDS:.0f} s",
                    sources=["upload", "microphone"],
                    type="filepath",
                    buttons=[],
                    elem_id="clip",
                    waveform_options={"waveform_color": "#a5b4fc", "waveform_progress_color": "#4f46e5"},
                )
                if SAMPLE.is_file():
                    gradio.Examples(
                        [[str(SAMPLE)]], [clip], label="or a LibriVox reader", example_labels=["librivox.wav"]
                    )
            with gradio.Column(scale=4):
                model = gradio.Radio(models, value=chosen.folder.name, label="Model", elem_id="model")
                effort = gradio.Slider(
                    0,
                    MOST_ROUNDS,
                    value=0,
                    step=1,
                    label="Effort",
                    info="Rounds of a search for better tokens; 0 is quick.",
                )
                kind = gradio.Radio(
                    [("none", "none"), ("bit errors", "bits"), ("packet loss", "packets")],
                    value="none",
                    label="Damage on the way",
                    elem_id="damage",
                )
                flips = gradio.Radio(
                    [("1 in 10,000", 1e-4), ("1 in 1,000", 1e-3), ("1 in 100", 1e-2)],
                    value=1e-3,
                    label="Bits flipped",
                    visible=False,
                )
                loss = gradio.Slider(1, 30, value=5, step=1, label="Blocks lost, %", visible=False)
                robust = gradio.Checkbox(True, label="Robust payload", visible=False, elem_id="robust")
                conceal = gradio.Checkbox(True, label="Conceal what is lost", visible=False)
                button = gradio.Button("Encode and decode", variant="primary", size="lg", elem_id="go")
        shown = gradio.HTML(js_on_load=None, elem_id="result")
        file = gradio.DownloadButton("Download the .q2d file", visible=False, elem_id="file")
        kind.change(show_damage, kind, [flips, loss, robust, conceal], api_visibility="private", show_progress="hidden")
        inputs = [clip, model, effort, kind, flips, loss, robust, conceal]
        button.click(run, inputs, [shown, file], api_visibility="private", show_progress_on=shown)
    return page
