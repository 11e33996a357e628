"""Wrote the golden files of tags and parity and tags-and-parity.json, once; refuses to write them again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from make_version2 import MARK, vector

from q2d2cli.container.header import Header
from q2d2cli.container.stream import Reader, Writer
from q2d2cli.container.tags import Picture, Tags
from q2d2cli.quantizers.spec import QuantizerSpec

HERE = Path(__file__).parent
PICTURE = Picture(bytes(range(256)), "image/png", 3, "Hülle", 16, 8, 24, 0)
TAGS = Tags(
    (("TITLE", "Golden"), ("artist", "Tülin"), ("ARTIST", "Second\nline")),
    (PICTURE, Picture(b"http://example.org/a.jpg", "-->", 17)),
    "vendor",
)
CASES = {"version2-tags": (TAGS, None), "version2-parity": (None, 0.1), "version2-tags-and-parity": (TAGS, 0.25)}


def main() -> None:
    vectors = {}
    for seed, (name, (tags, share)) in enumerate(CASES.items()):
        spec = QuantizerSpec("rhombic", (9, 9, 7, 7, 7, 7))
        header = Header(
            quantizer=spec,
            hop=144,
            sample_rate=24_000,
            model="golden",
            fingerprint=MARK,
            original_rate=16_000,
            channels=1,
            num_samples=5_000,
            frames_per_block=20,
        )
        rng = np.random.default_rng(100 + seed)
        indices = np.stack([rng.integers(0, size, (1, header.frames_for(5_000))) for size in spec.sizes], axis=-1)
        file = io.BytesIO()
        writer = Writer(file, header, parity=share, tags=tags)
        writer.write(indices)
        writer.close(5_000)
        with (HERE / f"{name}.q2d").open("xb") as target:
            target.write(file.getvalue())
        reader = Reader(io.BytesIO(file.getvalue()))
        pictures = [{**vars(picture), "data": picture.data.hex()} for picture in tags.pictures] if tags else []
        vectors[name] = {
            **vector(reader, np.concatenate([*map(reader.unpack, reader.blocks())], axis=1)),
            "vendor": tags.vendor if tags else "",
            "comments": [f"{key}={value}" for key, value in tags.comments] if tags else [],
            "pictures": pictures,
            "parity": share,
        }
    with (HERE / "tags-and-parity.json").open("x") as text:
        json.dump(vectors, text)
        text.write("\n")


if __name__ == "__main__":
    main()
