"""`q2d2 models import`: the authors' Lightning checkpoints give the tokens and the audio of their own code."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_authors as authors
import torch
import yaml
from conftest import CLIP, Run
from safetensors.torch import save_file

from q2d2cli import Codec, checkpoints

STRIDES = (4, 3, 2, 2)
HOP = 48
KINDS = [
    ("hexagon", (7, 7, 5, 5)),
    ("rectangle", (5, 4, 6, 3)),
    ("rhombic", (9, 7, 5, 5)),
    (None, ()),
]
Clip = tuple[np.ndarray, int]


def their_yaml(kind: str | None, levels: tuple[int, ...], strides: tuple[int, ...] = STRIDES) -> dict[str, Any]:
    """What their training is configured with, spelt as there."""
    quantizer = {"vq_type": kind, "codebook_dim": list(levels)} if kind else {"vq_bins": 64}
    features = {"encodec_model": "encodec_24khz", "bandwidths": [6.6] * 4, "train_codebooks": True}
    features |= {"num_quantizers": 1, "dowmsamples": list(strides), "vq_kmeans": 200, **quantizer}
    width = {"dim": authors.WIDTH}
    backbone = {"input_channels": 512, **width, "intermediate_dim": authors.HIDDEN, "num_layers": authors.LAYERS}
    hop = int(np.prod(strides))
    return {
        "seed_everything": 3407,
        "model": {
            "class_path": "decoder.experiment.WavTokenizer",
            "init_args": {
                "sample_rate": 24000,
                "evaluate_periodicty": True,
                "feature_extractor": {
                    "class_path": "decoder.feature_extractors.EncodecFeatures",
                    "init_args": features,
                },
                "backbone": {
                    "class_path": "decoder.models.VocosBackbone",
                    "init_args": {**backbone, "adanorm_num_embeddings": 4},
                },
                "head": {
                    "class_path": "decoder.heads.ISTFTHead",
                    "init_args": {**width, "n_fft": 4 * hop, "hop_length": hop, "padding": "same"},
                },
            },
        },
        "trainer": {"max_steps": 20000000},
    }


def write(folder: Path, state: authors.State, config: dict[str, Any]) -> tuple[Path, Path]:
    """A checkpoint as Lightning writes it, and its YAML."""
    checkpoint, path = folder / "model.ckpt", folder / "model.yaml"
    rest = {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "1.8.6",
        "hyper_parameters": {"sample_rate": 24000},
    }
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}
    torch.save({**rest, "state_dict": state, "optimizer_states": [optimizer], "lr_schedulers": []}, checkpoint)
    path.write_text(yaml.safe_dump(config))
    return checkpoint, path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the user's models."""
    monkeypatch.delenv("Q2D2_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "q2d2" / "models"


@pytest.mark.parametrize(("kind", "levels"), KINDS, ids=[kind or "single codebook" for kind, _ in KINDS])
@pytest.mark.usefixtures("float32")
def test_tokens_and_audio_are_those_of_the_authors(
    call: Run, tmp_path: Path, home: Path, clip: Clip, kind: str | None, levels: tuple[int, ...]
) -> None:
    torch.manual_seed(3)
    state = authors.make_state(STRIDES, levels, bins=64)
    reading = authors.Reading(state, STRIDES, kind, levels)
    # Not whole frames: their encoder reflects what is missing.
    audio = torch.from_numpy(clip[0][30_000 : 30_000 + 150 * HOP + 17])
    authors.spread(state, reading.features(audio))
    checkpoint, config = write(tmp_path, state, their_yaml(kind, levels))
    result = call("models", "import", checkpoint, "--config", config, "theirs")
    assert result.returncode == 0, result.stderr.decode()
    assert sorted(path.name for path in (home / "theirs").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "training.yaml",
    ]
    codec = Codec.from_pretrained("theirs", device="cpu")
    expected = reading.encode(audio)
    tokens = codec.encode(audio, 24_000)
    assert expected.unique().numel() > 30
    assert torch.equal(tokens.tokens[0], expected)
    decoded = reading.decode(expected)
    assert decoded.abs().mean() > 0.01
    torch.testing.assert_close(codec.decode(tokens)[0], decoded[: len(audio)], rtol=0, atol=1e-4)
    assert codec.encode(audio[: HOP + 1], 24_000).tokens.tolist() == [reading.encode(audio[: HOP + 1]).tolist()]


def test_the_transformers_library_agrees(tmp_path: Path, home: Path, call: Run, clip: Clip) -> None:
    transformers = pytest.importorskip("transformers", minversion="5.20")
    torch.manual_seed(4)
    config = transformers.WavTokenizerConfig(
        upsampling_ratios=list(STRIDES),
        codebook_size=64,
        decoder_hidden_size=authors.WIDTH,
        decoder_intermediate_size=authors.HIDDEN,
        decoder_num_layers=authors.LAYERS,
    )
    model = transformers.WavTokenizerModel(config).eval()
    audio = torch.from_numpy(clip[0][30_000 : 30_000 + 100 * HOP + 5])
    with torch.no_grad():
        for name, parameter in model.encoder_model.encoder.named_parameters():
            if name.endswith("original0"):
                parameter *= 2
        features = model.encoder_model.encoder(audio[None, None])[0].T
        model.encoder_model.quantizer.codebook.embed.copy_(features[:64] + 0.01 * features.std(0))
        expected = model(audio[None, None])
    state = {}
    for key, value in model.state_dict().items():
        if key.startswith("encoder_model.encoder."):
            key = authors.theirs(key.removeprefix("encoder_model.encoder."))
        key = key.replace("encoder_model.quantizer.codebook", authors.CODEBOOK).replace("head.linear", "head.out")
        state[key] = value
    # As weights alone, too.
    save_file(state, tmp_path / "weights.safetensors")
    _, path = write(tmp_path, state, their_yaml(None, ()))
    result = call("models", "import", tmp_path / "weights.safetensors", "--config", path, "theirs", "-q")
    assert result.returncode == 0, result.stderr.decode()
    codec = Codec.from_pretrained("theirs", device="cpu")
    tokens = codec.encode(audio, 24_000)
    assert tokens.tokens.tolist() == expected.audio_codes[0].tolist()
    torch.testing.assert_close(codec.decode(tokens)[0], expected.audio_values[0, 0], rtol=0, atol=1e-4)


@pytest.fixture
def imported(tmp_path: Path, home: Path, call: Run) -> Path:
    """A small imported model; it is called `theirs`."""
    torch.manual_seed(5)
    checkpoint, config = write(
        tmp_path, authors.make_state((4, 3, 2, 2), (5, 5, 3, 3)), their_yaml("rhombic", (5, 5, 3, 3))
    )
    assert call("models", "import", checkpoint, "--config", config, "theirs", "-q").returncode == 0
    return home / "theirs"


def test_an_imported_model_is_one_like_any_other(imported: Path, tmp_path: Path, call: Run, clip: Clip) -> None:
    import soundfile

    data = tmp_path / "audio"
    data.mkdir()
    soundfile.write(data / "a.wav", clip[0][: 3 * clip[1]], clip[1])
    assert b"theirs" in call("models").stdout
    assert call("encode", data / "a.wav", tmp_path / "a.q2d", "-m", "theirs", "-q").returncode == 0
    assert call("decode", tmp_path / "a.q2d", tmp_path / "b.wav", "-q").returncode == 0
    assert soundfile.info(tmp_path / "b.wav").frames == 3 * clip[1]
    # Overwritten only when asked.
    checkpoint, config = tmp_path / "model.ckpt", tmp_path / "model.yaml"
    assert call("models", "import", checkpoint, "-c", config, "theirs").returncode == 2
    assert call("models", "import", checkpoint, "-c", config, "theirs", "--force").returncode == 0
    # Fine-tuned for a step with the recipe that lies beside it, and exported.
    changes = [f"data.train={data}", f"data.valid={data}", "data.crop_seconds=0.2", "optim.batch_size=1", "steps=1"]
    changes += ["tensorboard=false", "bf16=false", "optim.muon_lr=0", "discriminator.start=1"]
    settings = [word for change in changes for word in ("--set", change)]
    run = tmp_path / "run"
    result = call("train", "-q", "-c", imported / "training.yaml", "-o", run, "--init", "theirs", *settings)
    assert result.returncode == 0, result.stderr.decode()
    before, after = (checkpoints.read_safetensors(f / "model.safetensors") for f in (imported, run / "best"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name].half(), after[name].half()) for name in before)
    result = call("export", run, tmp_path / "theirs", "--test", data, "--metrics", "stoi")
    assert result.returncode == 0, result.stderr.decode()
    assert checkpoints.find(str(tmp_path / "theirs")).config == checkpoints.find("theirs").config


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


def add_unknown(state: authors.State) -> None:
    state["backbone.convnext.0.colour"] = torch.zeros(3)


def drop(state: authors.State) -> None:
    del state["head.out.bias"]


def resize(state: authors.State) -> None:
    state["head.out.bias"] = torch.zeros(5)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (add_unknown, "backbone.convnext.0.colour"),
        (drop, "head.out.bias"),
        (resize, "head.out.bias has shape (5,), expected (194,)"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    call: Run, tmp_path: Path, home: Path, spoil: Callable[[authors.State], None], words: str
) -> None:
    state = authors.make_state(STRIDES, (3, 3))
    spoil(state)
    checkpoint, config = write(tmp_path, state, their_yaml("rhombic", (3, 3)))
    result = call("models", "import", checkpoint, "-c", config, "theirs")
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1
    assert words in result.stderr.decode()
    assert not home.exists()


@pytest.mark.parametrize("whole", [True, False])
def test_what_could_run_is_refused(
    call: Run, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint, config = write(tmp_path, {}, their_yaml("rhombic", (3, 3)))
    if whole:
        checkpoint.write_bytes(pickle.dumps(Evil(), protocol=2))
    else:
        torch.save({"state_dict": {}, "hyper_parameters": {"callback": Evil()}}, checkpoint)
    result = call("models", "import", checkpoint, "-c", config, "theirs")
    assert result.returncode == 1
    assert result.stderr.decode().count("\n") == 1
    assert "holds more than weights (" in result.stderr.decode()
    assert "system" in result.stderr.decode()
    assert not (tmp_path / "ran").exists()
    assert not home.exists()


def test_a_cut_checkpoint_is_damaged(call: Run, tmp_path: Path, home: Path) -> None:
    checkpoint, config = write(tmp_path, {"a": torch.zeros(10_000)}, their_yaml("rhombic", (3, 3)))
    for content in (checkpoint.read_bytes()[:20_000], b"", b"RIFF", b"\x80\x04K"):
        checkpoint.write_bytes(content)
        result = call("models", "import", checkpoint, "-c", config, "theirs")
        assert (result.returncode, result.stderr.decode().count("\n")) == (1, 1), result.stderr.decode()
        assert "is damaged or no PyTorch checkpoint" in result.stderr.decode()
    torch.save({"model": 3}, checkpoint)
    assert b"has no state_dict" in call("models", "import", checkpoint, "-c", config, "theirs").stderr
    assert call("models", "import", tmp_path / "none", "-c", config, "theirs").returncode == 2


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("feature_extractor", {"use_transformer": True}, "feature_extractor.use_transformer"),
        ("feature_extractor", {"num_quantizers": 8}, "feature_extractor.num_quantizers"),
        ("feature_extractor", {"vq_type": "square"}, "feature_extractor.vq_type"),
        ("feature_extractor", {"dowmsamples": [4, 4]}, "multiply to 16, but hop is 48"),
        ("feature_extractor", {"codebook_dim": [4, 4]}, "level 4 is even"),
        ("head", {"padding": "center"}, "head.padding"),
    ],
)
def test_a_yaml_of_something_else_is_named(
    call: Run, tmp_path: Path, home: Path, part: str, change: dict[str, Any], words: str
) -> None:
    config = their_yaml("rhombic", (3, 3))
    config["model"]["init_args"][part]["init_args"] |= change
    checkpoint, path = write(tmp_path, {}, config)
    result = call("models", "import", checkpoint, "-c", path, "theirs")
    assert result.returncode == 2
    assert result.stderr.decode().count("\n") == 1
    assert words in result.stderr.decode()
    assert not home.exists()


def test_other_files_and_names_are_refused(call: Run, tmp_path: Path, home: Path) -> None:
    checkpoint, path = write(tmp_path, {}, {})
    assert (
        b"is no configuration of Q2D2 or WavTokenizer" in call("models", "import", checkpoint, "-c", path, "a").stderr
    )
    assert b"cannot be a model's name" in call("models", "import", checkpoint, "-c", path, "../a").stderr
    result = call("models", "import", checkpoint, "-c", CLIP, "a")
    assert result.returncode == 2
    assert b"is not valid YAML" in result.stderr
