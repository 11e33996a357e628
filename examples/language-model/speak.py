"""Lets a trained model speak: samples ids, with text in front if it learned that, and decodes them.

python speak.py RUN out.wav [--say "Some words."]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
from model import load

from q2d2cli import Codec, Tokens
from q2d2cli.corpus.vocabulary import Vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("wav", type=Path)
    parser.add_argument("--say", help="text, for a model that was trained with --text")
    parser.add_argument("--seconds", type=float, default=8.0, help="at most")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--codec", help="folder of the codec's model, if it is not one that comes along")
    given = parser.parse_args()
    model = load(given.run)
    if model.config.text != (given.say is not None):
        parser.error("a model that was trained with --text needs --say, and others cannot have it")
    audio = model.config.audio
    codec = Codec.from_pretrained(given.codec or audio["model"], device="cpu")
    frames = round(given.seconds * codec.frame_rate)
    ids = model.sample(model.config.prompt(given.say), frames, given.temperature, given.seed)
    indices = Vocabulary.read(audio).to_indices(np.array(ids))
    header = codec.header(codec.sample_rate, 1, len(indices) * codec.config.hop)
    waveform = codec.decode(Tokens(torch.from_numpy(indices)[None], header))
    soundfile.write(given.wav, waveform[0].numpy(), codec.sample_rate)
    print(f"{given.wav}: {len(indices) / codec.frame_rate:.2f} s from {len(ids)} ids")


if __name__ == "__main__":
    main()
