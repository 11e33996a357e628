"""Train small models that differ in their quantizer alone, at equal steps, and measure them on speakers never heard.

    python examples/designs/compare.py data/speech --out runs/designs

`data/speech` has the folders train, valid and test, as `examples/speech/prepare.py` makes them. The designs are in
`designs.yaml`, the most wanted first; what all share stands in `base.yaml`. Stop it at any time and run it again: what
`results.json` beside this file has is not done again, a run that was stopped goes on, and after each design the tables
and pictures of docs/designs.md are written anew (`report.py`). Models stay in `--out`, a folder each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import soundfile
import torch
import yaml

from q2d2cli import Codec
from q2d2cli.audio import audio_files, read_mono
from q2d2cli.container.coding import library
from q2d2cli.evaluation.clips import Clip, choose_clips, spread
from q2d2cli.evaluation.codecs import CHANNEL_MARK, Q2D2Subject, over_channel
from q2d2cli.evaluation.scoring import ScoreRow, ScoringPlan, score_all
from q2d2cli.evaluation.summary import sum_up
from q2d2cli.files import atomic_output
from q2d2cli.training.config import LOG_NAME, TrainConfig
from q2d2cli.training.context import count_tables, gather, train_network
from q2d2cli.training.loop import train_model
from q2d2cli.training.state import STATE_NAME

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results.json"
RATE = 24_000
TRAIN_FILES, VALID_FILES = 12, 4
"""Of each folder."""
TEST_CLIPS = 24
TEST_SECONDS = (2.0, 8.0)
"""Shortest and longest test clip: PESQ and the recognizer need some speech, and time is short."""
METRICS = ("pesq", "stoi", "mel")
CHANNEL = "ber=1e-5,1e-4,1e-3,1e-2,1e-1"
CHANNEL_CLIPS = 8
CONTEXT_MINUTES, CONTEXT_STEPS = 15.0, 60
"""Audio that context models learn from, and steps of the recurrent one: seconds of training."""


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries laid over one another, the last on top."""
    out: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = out.get(key)
            out[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return out


def rows() -> list[dict[str, Any]]:
    """What is to be done, in order."""
    return yaml.safe_load((HERE / "designs.yaml").read_text("utf-8"))


def settings(row: dict[str, Any], done: dict[str, Any]) -> dict[str, Any]:
    """All that makes a design's training but its audio.

    Raises:
        KeyError: if another design comes first, whose bits decide.
    """
    base = yaml.safe_load((HERE / "base.yaml").read_text("utf-8"))
    own = {"model": {"name": row["name"], "quantizer": {"kind": row["kind"], "levels": row["levels"]}}}
    if "coded_like" in row:
        own["loss"] = {"rate_bits": done["designs"][row["coded_like"]]["coded"]["recurrent"]}
    return merged(base["shared"], base["rates"][row["rate"]], own, row.get("config", {}))


def checked(given: dict[str, Any], audio: Path) -> TrainConfig:
    """The configuration of these settings, for the folder that `prepare` fills."""
    return TrainConfig.model_validate(
        merged(given, {"data": {"train": str(audio / "train"), "valid": str(audio / "valid")}})
    )


def digest(given: object) -> str:
    """Changes when what it is of does."""
    return hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:12]


def prepare(corpus: Path, audio: Path) -> None:
    """Some files of each folder of the corpus, joined to one of 24 kHz: read in a second, by each design."""
    for split, count in (("train", TRAIN_FILES), ("valid", VALID_FILES)):
        (audio / split).mkdir(parents=True, exist_ok=True)
        folders: dict[Path, list[Path]] = {}
        for path in spread(audio_files(corpus / split), count):
            folders.setdefault(path.parent, []).append(path)
        for folder, paths in folders.items():
            target = audio / split / f"{'-'.join(folder.relative_to(corpus / split).parts) or 'all'}.wav"
            if not target.exists():
                samples = np.concatenate([read_mono(path, RATE) for path in paths])
                with atomic_output(target) as file:
                    soundfile.write(file, samples, RATE, "PCM_16", format="WAV")


def test_clips(corpus: Path) -> list[Clip]:
    """`TEST_CLIPS` of the test speakers, none too short or too long, with what is said where that is known."""
    known = corpus / "texts.jsonl"
    said = {}
    if known.exists():
        entries = [json.loads(line) for line in known.read_text("utf-8").splitlines()]
        said = {entry["file"]: entry["text"] for entry in entries}
    shortest, longest = TEST_SECONDS
    clips = []
    for clip in choose_clips(corpus / "test", None):
        if shortest <= soundfile.info(clip.path).duration <= longest:
            clips.append(Clip(clip.path, clip.name, said.get(f"test/{clip.name}")))
    chosen = set(spread([clip.path for clip in clips], 2))
    clips = [clip for clip in clips if clip.path in chosen]
    return few(clips, TEST_CLIPS)


def few(clips: Sequence[Clip], count: int) -> list[Clip]:
    """At most so many of them, evenly spaced."""
    return [clips[i * len(clips) // count] for i in range(count)] if len(clips) > count else list(clips)


def train(config: TrainConfig, out: Path) -> Path:
    """Train a design, or go on with it; returns the folder of its model."""
    folder = out / config.model.name
    return train_model(config, folder, resume=(folder / STATE_NAME).exists())


def coded_bits(model: Path, audio: Path, clips: Sequence[Clip]) -> dict[str, float]:
    """Payload bits a frame of the clips with tables of counts, and with a recurrent network, trained for seconds."""
    target = model / "context.safetensors"
    target.unlink(missing_ok=True)
    codec = Codec.from_pretrained(model, "cpu")
    tokens = gather(codec, audio / "train", CONTEXT_MINUTES, 0, lambda *_: None)
    made = {
        "static": count_tables(tokens, codec.quantizer, 0),
        "recurrent": train_network(tokens, codec.quantizer, CONTEXT_STEPS, 0, lambda *_: None),
    }
    found = {}
    for kind, tensors in made.items():
        library.save(target, kind, tensors, codec.fingerprint)
        subject = Q2D2Subject(str(model), "cpu")
        bits = frames = 0.0
        for clip in clips:
            encoded = subject.encode(read_mono(clip.path, RATE), RATE)
            bits += subject.size(encoded).payload_bits or 0.0
            frames += encoded.indices.shape[1]
        found[kind] = round(bits / frames, 3)
    target.unlink()
    return found


def scores(
    specs: Sequence[str], metrics: Sequence[str], clips: Sequence[Clip]
) -> tuple[dict[str, Any], list[ScoreRow]]:
    """What `q2d2 eval` tells, and the scores of each clip."""
    plan = ScoringPlan(tuple(specs), None, tuple(metrics), "cpu")
    subjects = plan.open()
    found, skipped = score_all(plan, subjects, clips)
    return sum_up(plan, subjects, found, skipped), found


def measured(config: TrainConfig, out: Path, clips: Sequence[Clip]) -> dict[str, Any]:
    """The entry of a trained design."""
    folder, spec = out / config.model.name, config.model.quantizer.spec()
    result, found = scores([f"q2d2:{folder / 'best'}"], METRICS, clips)
    codec = result["codecs"][0]
    log = [json.loads(line) for line in (folder / LOG_NAME).read_text("utf-8").splitlines()]
    return {
        "kind": spec.kind,
        "levels": list(spec.levels),
        "frames_per_second": round(config.model.frame_rate, 2),
        "bits": round(spec.bits_per_frame, 3),
        "seed": config.seed,
        "steps": log[-1]["step"],
        "minutes": round(log[-1]["minutes"], 1),
        "clips": result["files"],
        "clip_minutes": result["minutes"],
        "scores": {name: codec["datasets"]["all"][name] for name in METRICS},
        "each": {name: [None if (v := r["scores"][name]) is None else round(v, 4) for r in found] for name in METRICS},
        "pair_entropy": codec["pair_entropy"],
        "pair_utilization": codec["pair_utilization"],
        "coded": coded_bits(folder / "best", out / "audio", clips),
        "rate_bits": config.loss.rate_bits,
    }


def over(names: Sequence[str], out: Path, clips: Sequence[Clip]) -> dict[str, Any]:
    """Models over a noisy channel, as `q2d2 eval --channel`, each index in bits of its own."""
    specs = [f"q2d2:{out / name / 'best'}" for name in names]
    robust = [spec for spec in over_channel(specs, CHANNEL) if spec.split(CHANNEL_MARK)[1] == "robust"]
    result, _ = scores([*specs, *robust], ("pesq", "stoi"), few(clips, CHANNEL_CLIPS))
    kept = [
        {key: codec[key] for key in ("name", "channel") if key in codec}
        | {"datasets": {"all": codec["datasets"]["all"]}}
        for codec in result["codecs"]
    ]
    return {"metrics": result["metrics"], "files": result["files"], "minutes": result["minutes"], "codecs": kept}


def words(done: dict[str, Any], out: Path, clips: Sequence[Clip]) -> None:
    """Word error rates of all models that are here and have none yet, together: a recording is heard once."""
    missing = [name for name, entry in done["designs"].items() if "wer" not in entry["scores"]]
    missing = [name for name in missing if (out / name / "best").is_dir()]
    if missing:
        specs = [f"q2d2:{out / name / 'best'}" for name in missing]
        for name, codec in zip(missing, scores(specs, ("wer",), clips)[0]["codecs"], strict=True):
            done["designs"][name]["scores"]["wer"] = codec["datasets"]["all"]["wer"]


def read() -> dict[str, Any]:
    """The record."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"designs": {}, "channel": None}


def save(done: dict[str, Any]) -> None:
    """Write the record, then tables and pictures."""
    with atomic_output(RESULTS) as file:
        file.write((json.dumps(done, indent=1) + "\n").encode())
    report.write(done)


def one(row: dict[str, Any], done: dict[str, Any], out: Path, clips: Sequence[Clip]) -> bool:
    """Train and measure a design; False if that has been done."""
    given = settings(row, done)
    of = digest(given)
    known = done["designs"].get(row["name"])
    if known and known["digest"] == of:
        return False
    print(f"{time.strftime('%H:%M:%S')} {row['name']}", flush=True)
    config = checked(given, out / "audio")
    train(config, out)
    done["designs"][row["name"]] = {"rate": row["rate"], "digest": of, **measured(config, out, clips)}
    return True


def channel(row: dict[str, Any], done: dict[str, Any], out: Path, clips: Sequence[Clip]) -> bool:
    """Measure finished designs over a channel; False if that has been done."""
    names = row["channel"]
    of = digest([CHANNEL, CHANNEL_CLIPS, *(done["designs"][name]["digest"] for name in names)])
    if done["channel"] and done["channel"]["digest"] == of:
        return False
    print(f"{time.strftime('%H:%M:%S')} channel", flush=True)
    for other in rows():
        if other.get("name") in names and not (out / other["name"] / "best").is_dir():
            train(checked(settings(other, done), out / "audio"), out)  # the record came without models
    done["channel"] = {"digest": of, **over(names, out, clips)}
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path, help="folder with train, valid and test")
    parser.add_argument("--out", type=Path, required=True, help="folder for the models")
    parser.add_argument("--only", nargs="+", help="designs by name; everything if none is named")
    parser.add_argument("--words", action="store_true", help="also word error rates, at the end")
    options = parser.parse_args()
    torch.set_num_threads(1)
    prepare(options.corpus, options.out / "audio")
    clips = test_clips(options.corpus)
    for row in rows():
        if options.only and row.get("name") not in options.only:
            continue
        done, started = read(), time.monotonic()
        try:
            worked = (channel if "channel" in row else one)(row, done, options.out, clips)
        except KeyError as missing:
            print(f"{row.get('name', 'channel')} waits for {missing}", flush=True)
            continue
        if worked:
            print(f"{(time.monotonic() - started) / 60:.1f} minutes", flush=True)
            save(done)
    done = read()
    if options.words:
        words(done, options.out, clips)
    save(done)
    print("\n".join(report.tables(done)))


if __name__ == "__main__":
    main()
