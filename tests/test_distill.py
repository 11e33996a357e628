"""Encoder distillation: another encoder learns the codes of a model under its quantizer and decoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import CLIP, ROOT, TINY, Run, one_line

from q2d2cli import Codec, checkpoints
from q2d2cli.audio import read_mono
from q2d2cli.checkpoints import Lender
from q2d2cli.corpus.tokenize import describe_output
from q2d2cli.corpus.vocabulary import Vocabulary
from q2d2cli.evaluation.codecs import Q2D2Subject
from q2d2cli.models.config import ModelConfig, QuantizerConfig, SpectralEncoderConfig
from q2d2cli.models.model import CodecModel
from q2d2cli.training.config import difference, read_config
from q2d2cli.training.distill import Teacher, agreement

STUDENT = ["--set", "model.name=student", "--set", "model.encoder={type: spectral, dim: 24, hidden: 48, layers: 1}"]
NO_JUDGES = ["--set", "discriminator.start=1"]


def validations(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "valid" in line]


@pytest.mark.slow
def test_student_learns_the_codes_of_its_teacher(run: Run, config: Path, tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = ["--set", f"teacher={tiny}", "--set", "steps=120", *STUDENT, *NO_JUDGES]
    result = run("train", "-c", config, "-o", out, *settings)
    assert result.returncode == 0, result.stderr.decode()
    first, *_, last = found = validations(out)
    assert len(found) == 4
    losses = [json.loads(line).get("distillation") for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < 0.5 * losses[0]
    assert last["valid_distillation"] < first["valid_distillation"]
    assert 1 > last["agreement"] > first["agreement"] > 0
    assert {"teacher_mel", "teacher_stft", "teacher_stoi", "stoi"} <= set(last)
    assert last["teacher_mel"] == first["teacher_mel"]

    # Quantizer and decoder are the teacher's, to the bit.
    teacher, student = (checkpoints.read_safetensors(f / "model.safetensors") for f in (tiny, out / "best"))
    shared = [name for name in teacher if not name.startswith("encoder.")]
    assert {name for name in student if not name.startswith("encoder.")} == set(shared)
    assert all(torch.equal(teacher[name], student[name]) for name in shared)

    # What is logged is what the two codecs do.
    audio = read_mono(CLIP, TINY.sample_rate)
    codes = [Codec.from_pretrained(f, "cpu").encode(audio, TINY.sample_rate).indices for f in (tiny, out / "best")]
    assert agreement(codes[1], codes[0])[0] == pytest.approx(last["agreement"], abs=0.1)

    # The decoder of one decodes the tokens of the other, and the card says how far they agree.
    target = tmp_path / "student"
    assert run("export", out, target, "--test", tmp_path / "data", "--metrics", "stoi").returncode == 0
    assert f"| agreement | {100 * last['agreement']:.1f}% of tokens" in (target / "README.md").read_text()

    # It goes on like any run.
    result = run("train", "-c", config, "-o", out, "--resume", *settings, "--set", "steps=122")
    assert result.returncode == 0, result.stderr.decode()
    assert validations(out)[-1]["step"] == 122


def test_codes_alone_come_first(run: Run, config: Path, tiny: Path, tmp_path: Path) -> None:
    """Without the decoder, whose losses are not even computed; then with it, from what has been learnt."""
    out = tmp_path / "run"
    settings = ["--set", f"teacher={tiny}", "--set", "loss.distillation_alone=0.5", *STUDENT, *NO_JUDGES]
    result = run("train", "-c", config, "-o", out, *settings, "--set", "steps=40", "--set", "validate_every=40")
    assert result.returncode == 0, result.stderr.decode()
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "distillation" in line]
    alone, joined = trained[:2], trained[2:]
    assert [line["step"] for line in alone] == [10, 20]
    assert alone[-1]["distillation"] < alone[0]["distillation"]
    assert not any("mel" in line for line in alone)
    assert all("mel" in line for line in joined)
    assert joined[-1]["distillation"] < alone[0]["distillation"]

    # Exported, it has an encoder, and leaves the rest to its teacher, by whose name it goes in files.
    target = tmp_path / "student"
    environment = {"Q2D2_MODELS": str(tiny.parent)}
    exported = run(*("export", out, target, "--test", tmp_path / "data", "--metrics", "stoi"), environment=environment)
    assert exported.returncode == 0, exported.stderr
    own = checkpoints.read_safetensors(target / "model.safetensors")
    assert {name.split(".")[0] for name in own} == {"encoder", "quantizer"}
    assert all("project_in" in name for name in own if not name.startswith("encoder."))
    lender = checkpoints.open_checkpoint(target).lender
    assert lender == Lender("tiny", checkpoints.open_checkpoint(tiny).fingerprint())
    assert f"that of tiny, weights `{lender.fingerprint.hex()}`" in (target / "README.md").read_text()


@pytest.fixture
def small(tiny: Path, tmp_path: Path) -> Path:
    """A student of tiny beside a copy of it, in a folder of models; its encoder has random weights."""
    models = tmp_path / "models"
    shutil.copytree(tiny, models / "tiny")
    torch.manual_seed(1)
    config = TINY.model_copy(update={"name": "small", "encoder": SpectralEncoderConfig(dim=8, hidden=16, layers=1)})
    state = {f"encoder.{name}": tensor for name, tensor in CodecModel(config).encoder.state_dict().items()}
    lender = Lender("tiny", checkpoints.open_checkpoint(tiny).fingerprint())
    checkpoints.save(models / "small", config, state, lender=lender)
    return models


def test_files_of_a_student_are_its_teachers(run: Run, small: Path, tmp_path: Path) -> None:
    environment = {"Q2D2_MODELS": str(small), "XDG_CACHE_HOME": str(tmp_path)}
    file, plain, own = (tmp_path / name for name in ("a.q2d", "plain.wav", "own.wav"))
    assert run("encode", "-m", "small", CLIP, file, environment=environment).returncode == 0
    said = json.loads(run("info", "--json", file).stdout)
    assert (said["model"], said["fingerprint"]) == (
        "tiny",
        checkpoints.fingerprint(small / "tiny/model.safetensors").hex(),
    )
    assert run("decode", file, own, "-m", "small", environment=environment).returncode == 0
    rows = {row["name"]: row for row in json.loads(run("models", "--json", environment=environment).stdout)}
    assert rows["small"]["decoder_of"] == "tiny"
    assert rows["tiny"]["decoder_of"] is None
    assert "small: another encoder for tiny" in run("models", environment=environment).stdout.decode()

    # They need no more than the teacher; the student does, even where its graphs are kept.
    graphs = ("encode", "-m", "small", CLIP, tmp_path / "c.q2d", "--runtime", "onnx")
    assert run(*graphs, environment=environment).returncode == 0
    assert list((tmp_path / "q2d2/onnx").glob("*/encoder.onnx"))
    shutil.move(small / "small", tmp_path / "small")
    assert run("decode", file, plain, environment=environment).returncode == 0
    assert plain.read_bytes() == own.read_bytes()
    shutil.rmtree(small / "tiny")
    command = ("encode", "-m", tmp_path / "small", CLIP, tmp_path / "b.q2d")
    for wanted in ("has the decoder of another: no model 'tiny' here", "weights", "contradicts that of 'tiny'"):
        for runtime in ("torch", "onnx"):
            refused = run(*command, "--runtime", runtime, environment=environment)
            one_line(refused, 1 if "contradicts" in wanted else 2, wanted)
        # Next another model of that name, then the right weights under another configuration.
        config = TINY if wanted != "weights" else TINY.model_copy(update={"hop": 96})
        checkpoints.save(small / "tiny", config, CodecModel(config).state_dict())
        if wanted == "weights":
            described = json.loads((tmp_path / "small/config.json").read_text())
            described["decoder_of"]["fingerprint"] = checkpoints.fingerprint(small / "tiny/model.safetensors").hex()
            (tmp_path / "small/config.json").write_text(json.dumps(described))
    assert not (tmp_path / "b.q2d").exists()


def test_students_are_codecs_of_their_own(
    small: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("Q2D2_MODELS", str(small))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    student, teacher = (Codec.from_pretrained(name, "cpu") for name in ("small", "tiny"))
    assert student.fingerprint == teacher.fingerprint != student.encoder_fingerprint
    assert (student.name, student.decoder) == ("small", "tiny")
    subjects = [Q2D2Subject(name, "cpu") for name in ("small", "tiny")]
    assert len({subject.identity for subject in subjects}) == 2
    audio = read_mono(CLIP, TINY.sample_rate)[: TINY.sample_rate]
    tokens = student.encode(audio, TINY.sample_rate)
    assert agreement(tokens.indices, teacher.encode(audio, TINY.sample_rate).indices)[0] < 0.5
    assert torch.equal(teacher.decode(tokens), student.decode(tokens))
    # Outputs of tokenize say whose tokens they are, and by whom.
    job = describe_output(student, Vocabulary(student.quantizer))
    assert (job["model"], job["fingerprint"]) == ("tiny", teacher.fingerprint.hex())
    assert job["encoder"].startswith("small ")
    other = Codec.from_pretrained("small", runtime="onnx")
    assert agreement(other.encode(audio, TINY.sample_rate).indices, tokens.indices)[0] > 0.99


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.hop=96"], ["model.hop is 96, but 48"]),
        (["model.quantizer.levels=[5,5,5,5]"], ["model.quantizer.levels", "[5, 5, 5, 5]", "[5, 5, 3, 3]"]),
        (["model.decoder.layers=3"], ["model.decoder.layers is 3, but 2"]),
        (["model.feature_dim=32"], ["model.feature_dim is 32, but 16"]),
        (["freeze=[decoder]"], ["freeze", "teacher"]),
        (["teacher=nobody"], ["no model 'nobody'"]),
    ],
)
def test_what_does_not_fit_the_teacher_is_named(
    run: Run, config: Path, tiny: Path, tmp_path: Path, settings: list[str], words: list[str]
) -> None:
    changes = [part for setting in (f"teacher={tiny}", *settings) for part in ("--set", setting)]
    result = run("train", "-c", config, "-o", tmp_path / "run", *changes)
    assert result.returncode == 2
    assert result.stderr.decode().count("\n") == 1
    for word in words:
        assert word in result.stderr.decode()


def test_agreement_counts_frames_and_pairs() -> None:
    teacher = torch.tensor([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    student = torch.tensor([[[0, 1], [2, 9]], [[9, 9], [6, 7]]])
    assert agreement(student, teacher) == (0.5, [0.75, 0.5])
    assert difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ("a.c", 2, 3)
    assert difference({"a": {"b": 1}}, {"a": {"b": 1}}) is None


@pytest.mark.parametrize(
    "quantizer",
    [
        QuantizerConfig(kind="rhombic", levels=(5, 5, 3, 3), spread=1.2),
        QuantizerConfig(kind="hexagonal", levels=(5, 5)),
        QuantizerConfig(kind="fsq", levels=(5, 5, 3)),
        QuantizerConfig(kind="vq", levels=(16,)),
    ],
    ids=lambda quantizer: quantizer.kind,
)
def test_quantized_values_decide_the_codes(quantizer: QuantizerConfig) -> None:
    torch.manual_seed(0)
    model = CodecModel(ModelConfig(feature_dim=8, quantizer=quantizer)).quantizer.eval()
    features = torch.randn(2, 50, 8)
    quantized = model(features.requires_grad_())
    assert quantized.values.shape[:2] == (2, 50)
    (gradient,) = torch.autograd.grad(quantized.values.square().sum(), features)
    assert (gradient.abs().sum(-1) > 0).all()
    if quantizer.kind == "fsq":
        assert torch.equal((quantized.values + model.half_width).round().long(), quantized.indices)
    elif quantizer.kind != "vq":
        pairs = quantized.values.unflatten(-1, (-1, 2))
        for j, grid in enumerate(model.grids):
            assert torch.equal(grid.nearest(pairs[..., j, :]), quantized.indices[..., j])


def test_example_fits_its_teacher() -> None:
    config = read_config(ROOT / "examples" / "speech" / "distill-3k.yaml")
    assert config.teacher == "speech-3k"
    teacher = Teacher(config.teacher, config.model, torch.device("cpu"))
    student = CodecModel(config.model)
    teacher.lend(student)
    count = [sum(p.numel() for p in m.encoder.parameters()) for m in (student, teacher.model)]
    assert count[0] < count[1] / 3
