"""Takes a .q2d stream from a socket and writes its audio as it comes: 16-bit samples without header.

    python listen.py PORT | aplay -f S16_LE -r 16000

Which model the stream needs, its sample rate and its channels stand in the stream's header.
"""

from __future__ import annotations

import argparse
import socket
import sys

import numpy as np

from q2d2cli import Codec
from q2d2cli.container.stream import Reader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int, help="0 takes a free one, which is printed")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen at")
    arguments = parser.parse_args()
    with socket.create_server((arguments.host, arguments.port)) as server:
        print(f"listening at port {server.getsockname()[1]}", file=sys.stderr, flush=True)
        connection, _ = server.accept()
    with connection, connection.makefile("rb") as file:
        reader = Reader(file)
        header = reader.header
        codec = Codec.for_weights(header.model, header.fingerprint)
        print(f"{header.channels} channels at {header.original_rate} Hz, {header.model}", file=sys.stderr)
        decoder = codec.stream_decoder(header)
        for block in reader.blocks():
            for audio in decoder.push(reader.unpack(block)):
                play(audio)
        assert reader.num_samples is not None  # the end block says so
        for audio in decoder.finish(reader.num_samples):
            play(audio)


def play(audio: np.ndarray) -> None:
    """Write `(channels, samples)` to standard output."""
    sys.stdout.buffer.write((audio.T.clip(-1, 1) * 32767).round().astype("<i2").tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
