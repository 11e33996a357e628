"""A thousand clips to tokens, killed, gone on with, verified, learned from in each format, and turned back into audio.

    pip install "q2d2[corpus]" webdataset megatron-core
    python tests/examples/thousand_clips.py SPEECH WORK [--clips 1000] [--model speech-1k] [--formats parquet,npy]

Clips of half a second to two are cut from the audio files below SPEECH; WORK is made. It stops at the first thing that
is not as docs/tokens.md says.
"""

from __future__ import annotations

import argparse
import glob
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch

FORMATS = ("parquet", "webdataset", "megatron", "npy")
Ids = Iterator[tuple[str, np.ndarray]]


def parquet(folder: Path) -> Ids:
    import datasets

    rows = datasets.load_dataset("parquet", data_dir=f"{folder}/data", cache_dir=f"{folder.parent}/cache")
    for row in rows["train"]:
        yield row["id"], np.array(row["codes"])


def webdataset(folder: Path) -> Ids:
    import webdataset

    for sample in webdataset.WebDataset(glob.glob(f"{folder}/data/*.tar"), shardshuffle=False).decode():
        yield sample["json"]["id"], sample["npy"]


def megatron(folder: Path) -> Ids:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    for shard in sorted(folder.glob("data/*.idx")):
        documents = IndexedDataset(str(shard.with_suffix("")))
        names = [json.loads(line)["id"] for line in shard.with_suffix(".jsonl").read_text().splitlines()]
        assert len(names) == len(documents)
        for number, name in enumerate(names):
            yield name, np.array(documents[number])


def npy(folder: Path) -> Ids:
    for shard in sorted(folder.glob("data/shard-*.jsonl")):
        for line in shard.read_text().splitlines():
            name = json.loads(line)["id"]
            yield name, np.load(f"{folder}/data/{name}.npy")


READERS: dict[str, Callable[[Path], Ids]] = dict(zip(FORMATS, (parquet, webdataset, megatron, npy), strict=True))


def cut(speech: Path, folder: Path, count: int) -> None:
    """Write short clips of the files of a folder, in folders of their own by speaker."""
    rng = random.Random(0)
    files = sorted(path for path in speech.rglob("*") if path.suffix in (".flac", ".wav", ".mp3", ".ogg"))
    for number in range(count):
        path = rng.choice(files)
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        length = min(len(audio), round(rng.uniform(0.5, 2.0) * rate))
        start = rng.randint(0, len(audio) - length)
        target = folder / path.parent.name / f"{number:04}.wav"
        target.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(target, audio[start : start + length, 0], rate)


def q2d2(*arguments: str | Path) -> None:
    """Run the command; it must succeed."""
    print("q2d2", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "q2d2cli", *map(str, arguments)], check=True)


def kill_in_the_middle(manifest: Path, shards: int, *arguments: str | Path) -> None:
    """Run the command and kill it with signal 9 when half of the shards are there."""
    process = subprocess.Popen([sys.executable, "-m", "q2d2cli", *map(str, arguments)])
    while process.poll() is None and (not manifest.exists() or manifest.read_bytes().count(b"\n") <= shards // 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    there = len(manifest.read_bytes().splitlines()) - 1
    print(f"killed with {there} of {shards} shards there", flush=True)


def learn(clips: list[np.ndarray], vocabulary: int) -> tuple[float, float]:
    """One epoch of a model that predicts the next id from the last; loss of the first and the last tenth of it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(vocabulary, 64), torch.nn.Linear(64, vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batches = torch.utils.data.DataLoader(
        [torch.from_numpy(ids.astype(np.int64)) for ids in clips], 16, shuffle=True, collate_fn=list
    )
    losses = []
    for batch in batches:
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=-100)
        loss = torch.nn.functional.cross_entropy(
            model(ids[:, :-1].clamp(min=0)).transpose(1, 2), ids[:, 1:], ignore_index=-100
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    tenth = max(1, len(losses) // 10)
    return float(np.mean(losses[:tenth])), float(np.mean(losses[-tenth:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--model", default="speech-1k")
    parser.add_argument("--formats", default=",".join(FORMATS))
    given = parser.parse_args()
    corpus, shards = given.work / "corpus", 20
    cut(given.speech, corpus, given.clips)
    lengths = {
        path.relative_to(corpus).with_suffix("").as_posix(): soundfile.info(path) for path in corpus.rglob("*.wav")
    }
    first: dict[str, np.ndarray] = {}
    for name in given.formats.split(","):
        tokens, wavs = given.work / name, given.work / f"{name}-wavs"
        job = ["tokenize", corpus, "--out", tokens, "--model", given.model, "--format", name]
        job += ["--shard-clips", str(-(-given.clips // shards))]
        kill_in_the_middle(tokens / "manifest.jsonl", shards, *job)
        q2d2(*job)
        q2d2("tokenize", "--verify", tokens)
        q2d2("tokenize", "--verify", "1%", tokens)
        found = dict(READERS[name](tokens))
        assert found.keys() == lengths.keys(), "not the clips that were there"
        first = first or found
        assert all(np.array_equal(found[key], first[key]) for key in first), "formats have other ids"
        about = json.loads((tokens / "manifest.jsonl").read_text().splitlines()[0])["description"]
        before, after = learn(list(found.values()), about["vocabulary_size"])
        assert after < before, "nothing was learned"
        q2d2("detokenize", tokens, "--out", wavs)
        for key, info in lengths.items():
            back = soundfile.info(wavs / f"{key}.wav")
            assert (back.frames, back.samplerate) == (info.frames, info.samplerate), key
        size = sum(path.stat().st_size for path in (tokens / "data").rglob("*") if path.is_file())
        seconds = sum(info.frames / info.samplerate for info in lengths.values())
        print(
            f"{name}: {len(found)} clips, {sum(map(len, found.values()))} ids, loss {before:.2f} to {after:.2f}, "
            f"all back with their lengths; {size / seconds * 3600 / 1e6:.2f} MB an hour",
            flush=True,
        )


if __name__ == "__main__":
    main()
