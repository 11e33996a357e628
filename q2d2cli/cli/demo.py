"""`q2d2 demo`: a page in the browser to hear and see the codec."""

from __future__ import annotations

from typing import Annotated

import typer

from q2d2cli.cli.common import Device, Quiet, check_packages


def demo(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the page; 0 for any free one.")] = 7860,
    host: Annotated[
        str, typer.Option("--host", help="Address to serve on; 0.0.0.0 lets other computers in.")
    ] = "127.0.0.1",
    device: Device = "auto",
    quiet: Quiet = False,
) -> int:
    """Open a page on which you hear and see what the codec does; it asks no other computer for anything.

    q2d2 demo --port 8000
    """
    check_packages("demo", "gradio", "matplotlib", "scipy", extra="demo")
    from q2d2cli.demo.page import listen, serve

    serve(listen(host, port), device, quiet)
    return 0
