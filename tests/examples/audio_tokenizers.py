"""Audio to codes and back with any codec of transformers: the same lines for EnCodec, DAC, Mimi and Q2D2.

python audio_tokenizers.py FOLDER...   (each what a model's and a feature extractor's save_pretrained wrote)
"""

from __future__ import annotations

import inspect
import sys

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModel

import q2d2cli.hf  # noqa: F401  registers Q2D2Model


def main(folder: str) -> None:
    model = AutoModel.from_pretrained(folder).eval()
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    rate = extractor.sampling_rate
    time = np.arange(rate // 2) / rate
    clips = [np.sin(2 * np.pi * 220 * time).astype(np.float32), np.sin(2 * np.pi * 330 * time[: rate // 3])]
    inputs = extractor(raw_audio=clips, sampling_rate=rate, return_tensors="pt")
    taken = inspect.signature(model.encode).parameters
    with torch.no_grad():
        encoded = model.encode(**{name: value for name, value in inputs.items() if name in taken})
        scales = {"audio_scales": encoded.audio_scales} if "audio_scales" in encoded else {}  # EnCodec alone has them
        audio = model.decode(audio_codes=encoded.audio_codes, **scales).audio_values
    codes = encoded.audio_codes
    assert codes.dtype == torch.int64
    assert torch.isfinite(audio).all()
    print(f"{type(model).__name__}: codes {tuple(codes.shape)}, {audio.shape[-1] / rate:.3f} s of audio")


for name in sys.argv[1:]:
    main(name)
