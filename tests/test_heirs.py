"""Weights that went on from others decode their files: single ones, students', whole corpora."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import CLIP, TINY, Run, one_line

from q2d2cli import Codec, checkpoints
from q2d2cli.checkpoints import Lender
from q2d2cli.container.coding import library
from q2d2cli.errors import UsageError
from q2d2cli.evaluation.codecs import Q2D2Subject
from q2d2cli.models.config import SpectralEncoderConfig
from q2d2cli.models.model import CodecModel


@dataclass
class Family:
    """A folder of models: `tiny`, with a context model, and `tiny-v2`, exported from a run that went on from it."""

    models: Path
    environment: dict[str, str]
    export: tuple[str | Path, ...]
    """The command that made `tiny-v2`."""


def family_in(folder: Path) -> Family:
    """As it is once it has been made in this folder."""
    models = folder / "models"
    export = ("export", folder / "run", models / "tiny-v2", "--name", "tiny-v2", "--test", CLIP, "--metrics", "stoi")
    return Family(models, {"Q2D2_MODELS": str(models), "XDG_CACHE_HOME": str(folder / "cache")}, export)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder, for the first test that needs a family."""
    return tmp_path_factory.mktemp("heirs")


@pytest.fixture
def family(run: Run, config: Path, tiny: Path, tmp_path: Path, made_once: Path) -> Family:
    if not any(made_once.iterdir()):
        make_family(run, config, tiny, made_once)
    shutil.copytree(made_once, tmp_path, dirs_exist_ok=True)
    return family_in(tmp_path)


def make_family(run: Run, config: Path, tiny: Path, folder: Path) -> None:
    family = family_in(folder)
    models, environment, export = family.models, family.environment, family.export
    shutil.copytree(tiny, models / "tiny")
    made = run(
        "context", "tiny", "--data", CLIP.parent, "--kind", "static", "--minutes", "0.2", environment=environment
    )
    assert made.returncode == 0, made.stderr.decode()
    started = folder / "run"
    recipe = yaml.safe_load(config.read_text())
    model = checkpoints.load(checkpoints.open_checkpoint(tiny))
    with torch.no_grad():
        model.decoder.head.out.bias[: TINY.decoder.n_fft(TINY.hop) // 2 + 1] += 1.0
        model.quantizer.project_in.bias += 0.3
    checkpoints.save(started / "best", TINY, model.state_dict())
    (started / "config.yaml").write_text(yaml.safe_dump(recipe))
    (started / "log.jsonl").write_text(json.dumps({"step": 1, "minutes": 0.1}) + "\n")
    done = run(*export, "--decodes", "tiny", environment=environment)
    assert done.returncode == 0, done.stderr.decode()


def loudness(path: Path) -> float:
    return float(np.sqrt(np.mean(soundfile.read(path)[0] ** 2)))


def test_files_decode_with_the_weights_that_went_on(run: Run, family: Family, tmp_path: Path) -> None:
    old = checkpoints.open_checkpoint(family.models / "tiny").fingerprint()
    card = (family.models / "tiny-v2/README.md").read_text()
    assert f"| decodes | its own files, and those of tiny (weights `{old.hex()}`) |" in card
    files = [tmp_path / "files" / f"{name}.q2d" for name in "ab"]
    files[0].parent.mkdir()
    for file in files:
        assert run("encode", "-m", "tiny", CLIP, file, environment=family.environment).returncode == 0
    assert json.loads(run("info", "--json", files[0]).stdout)["payload"] == "coded"

    # As long as the weights are here, they decode.
    exact = run("decode", files[0], tmp_path / "exact.wav", environment=family.environment)
    assert exact.returncode == 0
    assert b"went on" not in exact.stderr
    shutil.move(family.models / "tiny", tmp_path / "tiny")
    later = run("decode", files[0].parent, "--out-dir", tmp_path / "later", environment=family.environment)
    assert later.returncode == 0, later.stderr.decode()
    assert later.stderr.decode().count("files of tiny are decoded with tiny-v2, which went on from it\n") == 1
    assert loudness(tmp_path / "later/a.wav") > 1.5 * loudness(tmp_path / "exact.wav")
    quiet = run("decode", "--quiet", files[0], tmp_path / "quiet.wav", environment=family.environment)
    assert (quiet.returncode, quiet.stderr) == (0, b"")
    rows = json.loads(run("models", "--json", environment=family.environment).stdout)
    assert [row["decodes"] for row in rows if row["name"] == "tiny-v2"] == [{"tiny": old.hex()}]
    assert "tiny-v2 decodes the files of tiny, too." in run("models", environment=family.environment).stdout.decode()

    # One way only: the earlier weights know nothing of the later ones.
    new = tmp_path / "new.q2d"
    assert run("encode", "-m", "tiny-v2", CLIP, new, environment=family.environment).returncode == 0
    one_line(run("decode", new, "-m", tmp_path / "tiny", tmp_path / "x.wav"), 1, "get those weights")


def test_later_weights_hand_it_on(run: Run, family: Family, tmp_path: Path) -> None:
    file = tmp_path / "a.q2d"
    assert run("encode", "-m", "tiny", CLIP, file, environment=family.environment).returncode == 0
    third = [family.models / "tiny-v3" if word == family.models / "tiny-v2" else word for word in family.export]
    third[third.index("tiny-v2")] = "tiny-v3"
    assert run(*third, "--decodes", "tiny-v2", environment=family.environment).returncode == 0
    found = checkpoints.open_checkpoint(family.models / "tiny-v3")
    assert list(found.decodes) == ["tiny", "tiny-v2"]
    shutil.rmtree(family.models / "tiny")
    shutil.rmtree(family.models / "tiny-v2")
    assert run("decode", file, tmp_path / "a.wav", environment=family.environment).returncode == 0


def test_models_with_other_frames_are_refused(run: Run, family: Family) -> None:
    config = TINY.model_copy(update={"name": "other", "hop": 2 * TINY.hop})
    checkpoints.save(family.models / "other", config, CodecModel(config).state_dict())
    refused = run(*family.export, "--force", "--decodes", "other", environment=family.environment)
    one_line(refused, 2, f"cannot decode the files of other: its hop is {2 * TINY.hop}, here {TINY.hop}")


def test_a_student_borrows_from_them(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(family.models))
    monkeypatch.setattr(library, "_folders", [])
    config = TINY.model_copy(update={"name": "small", "encoder": SpectralEncoderConfig(dim=8, hidden=16, layers=1)})
    state = checkpoints.load(checkpoints.open_checkpoint(family.models / "tiny")).state_dict()
    state = {name: tensor for name, tensor in state.items() if name.startswith("quantizer.project_in")}
    state |= {f"encoder.{name}": tensor for name, tensor in CodecModel(config).encoder.state_dict().items()}
    lender = Lender("tiny", checkpoints.open_checkpoint(family.models / "tiny").fingerprint())
    checkpoints.save(family.models / "small", config, state, lender=lender)
    first = Q2D2Subject("small", "cpu")
    shutil.rmtree(family.models / "tiny")
    second = Q2D2Subject("small", "cpu")
    assert first.identity != second.identity
    # Its files still name the weights whose tokens they are, and are as small as before.
    assert second.codec.fingerprint == lender.fingerprint
    assert second.codec.context is not None
    audio, rate = soundfile.read(CLIP, dtype="float32")
    tokens = second.codec.encode(audio[:rate], rate)
    heir = Codec.from_pretrained("tiny-v2", "cpu")
    assert torch.equal(heir.decode(tokens), second.codec.decode(tokens))
    assert torch.equal(tokens.indices, first.codec.encode(audio[:rate], rate).indices)
    assert not torch.equal(first.codec.decode(tokens), heir.decode(tokens))
    onnx = Codec.from_pretrained("small", runtime="onnx")
    assert (onnx.decode(tokens) - heir.decode(tokens)).abs().max() < 0.01


def test_a_codec_for_weights(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(family.models))
    mark = checkpoints.open_checkpoint(family.models / "tiny").fingerprint()
    assert Codec.for_weights("tiny", mark, "cpu").name == "tiny"
    shutil.rmtree(family.models / "tiny")
    assert Codec.for_weights("tiny", mark.hex(), "cpu").name == "tiny-v2"
    with pytest.raises(UsageError, match="tokens are those of model 'tiny-v2', weights 0000000000000000"):
        Codec.for_weights("tiny-v2", bytes(8), "cpu")
    with pytest.raises(UsageError, match="'tiny' is no fingerprint"):
        Codec.for_weights("tiny", "tiny")
    with pytest.raises(UsageError, match="no model 'other'"):
        Codec.for_weights("other", bytes(8))


def test_corpora_decode_with_them(run: Run, family: Family, tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    corpus.mkdir()
    shutil.copy(CLIP, corpus)
    assert run("tokenize", corpus, "--out", out, "-m", "tiny", environment=family.environment).returncode == 0
    shutil.rmtree(family.models / "tiny")
    torch.manual_seed(1)
    checkpoints.save(tmp_path / "kept", TINY, CodecModel(TINY).state_dict())
    wavs = tmp_path / "wavs"
    done = run("detokenize", out, "--out", wavs, environment=family.environment)
    assert done.returncode == 0, done.stderr.decode()
    assert len(list(wavs.glob("*.wav"))) == 1
    one_line(
        run("detokenize", out, "--out", wavs, "-m", tmp_path / "kept", environment=family.environment),
        2,
        f"{out} was made with model 'tiny', weights",
    )
