"""Codebook analysis: entropies against numbers by hand, mutual information with known answers, pictures, command."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLIP, ROOT, TINY, Run
from sklearn.metrics import mutual_info_score

from q2d2cli import Codec, checkpoints
from q2d2cli.cli.common import check_packages
from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation import analysis, codebook, pictures
from q2d2cli.models.config import QuantizerConfig
from q2d2cli.models.model import CodecModel

PICTURES = ["cloud.png", "grid.png", "mutual-information.png"]


def model_of(folder: Path, kind: str, levels: tuple[int, ...]) -> Path:
    """A folder of the tiny model with another quantizer, its weights large enough to spread the codes."""
    config = TINY.model_copy(update={"name": f"tiny-{kind}", "quantizer": QuantizerConfig(kind=kind, levels=levels)})
    torch.manual_seed(0)
    model = CodecModel(config)
    if config.quantizer.spec().is_grid:
        with torch.no_grad():
            model.quantizer.project_in.weight.mul_(20)
    checkpoints.save(folder, config, model.state_dict())
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speech of two "speakers" and one broken file."""
    root = tmp_path_factory.mktemp("corpus")
    audio, rate = soundfile.read(CLIP, dtype="float32")
    for name, begin in (("a/1", 0), ("a/2", 1), ("a/3", 2), ("b/1", 4)):
        path = root / f"{name}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, audio[begin * rate : (begin + 1) * rate], rate)
    (root / "b" / "broken.wav").write_bytes(b"RIFF....")
    return root


def test_entropies_by_hand() -> None:
    assert codebook.entropy(np.array([1, 1, 0, 2])) == pytest.approx(1.5)
    assert codebook.entropy(np.array([7, 0])) == 0
    assert codebook.entropy(np.zeros(3)) == 0
    # In three of four frames the context leaves a choice of 2 to 1, in the fourth none.
    values, context = np.array([0, 0, 1, 1]), np.array([[0], [0], [0], [1]])
    third = -(1 / 3 * math.log2(1 / 3) + 2 / 3 * math.log2(2 / 3))
    assert codebook.conditional_entropy(values, context) == pytest.approx(3 / 4 * third)
    assert codebook.conditional_entropy(values, np.zeros((4, 2), int)) == pytest.approx(1)


def test_joint_numbers_equal_rows_alike_even_where_products_overflow() -> None:
    rows = np.array([[1, 2**62, 5], [1, 2**62, 5], [2, 2**62, 5], [1, 2**62 - 1, 5], [1, 2**62, 0]])
    ids = codebook.joint(np.concatenate([rows, rows], axis=1))
    assert ids[0] == ids[1]
    assert len(set(ids.tolist())) == 4


def test_pair_use_of_a_sequence_made_by_hand() -> None:
    # Pair 0 alternates within a file and is thus known from its predecessor; pair 1 copies it.
    first = np.array([0, 1, 0, 1, 1, 0, 1, 0])
    indices = np.stack([first, first], axis=1)
    rows = codebook.pair_use(indices, (4, 2), starts=[0, 4])
    assert [row["counts"] for row in rows] == [[4, 4, 0, 0], [4, 4]]
    assert [row["utilization"] for row in rows] == [0.5, 1]
    assert [row["entropy"] for row in rows] == pytest.approx([1, 1])
    assert [row["entropy_share"] for row in rows] == pytest.approx([0.5, 1])
    assert [row["perplexity"] for row in rows] == pytest.approx([2, 2])
    # Across the files 1 follows 1: that must not count.
    assert [row["given_previous"] for row in rows] == pytest.approx([0, 0])
    assert [row["given_others"] for row in rows] == pytest.approx([0, 0])
    across = codebook.pair_use(indices, (4, 2), starts=[0])
    assert across[0]["given_previous"] > 0.4
    alone = codebook.pair_use(indices[:1, :1], (4,), starts=[0])[0]
    assert alone["given_previous"] is None
    assert alone["given_others"] is None


def test_shuffled_contexts_tell_few_frames_from_real_gain() -> None:
    random = np.random.default_rng(0)
    noise = random.integers(0, 64, (2000, 2))
    row = codebook.pair_use(noise, (64, 64), starts=[0])[0]
    # Counts alone would promise a gain of half a bit and more where there is none.
    assert row["given_previous"] < row["entropy"] - 0.5
    assert row["given_previous"] == pytest.approx(row["given_previous_shuffled"], abs=0.05)
    walk = np.cumsum(random.integers(0, 2, (2000, 1)), axis=0) % 64
    row = codebook.pair_use(walk, (64,), starts=[0])[0]
    assert row["given_previous"] == pytest.approx(1, abs=0.05)
    assert row["given_previous_shuffled"] > 4.5


def test_codebook_use_by_hand() -> None:
    indices = np.array([[0, 0], [1, 0], [0, 0], [2, 3]])
    use = codebook.codebook_use(indices, 16)
    assert (use["distinct"], use["frames"], use["utilization"]) == (3, 4, 3 / 16)
    assert use["entropy"] == pytest.approx(1.5)
    assert use["entropy_limit"] == 2
    assert use["utilization_if_even"] == pytest.approx(1 - (15 / 16) ** 4)


def test_mutual_information_of_known_cases() -> None:
    grid = np.array([(x, y) for x in range(5) for y in range(5)])
    assert codebook.mutual_information(grid[:, 0], grid[:, 1]) == pytest.approx(0, abs=1e-12)
    assert codebook.mutual_information(grid[:, 0], 7.5 - grid[:, 0]) == pytest.approx(math.log2(5))
    random = np.random.default_rng(0)
    x = random.integers(0, 6, 500)
    y = (x + random.integers(0, 3, 500)) % 6
    assert codebook.mutual_information(x, y) == pytest.approx(mutual_info_score(x, y) / math.log(2))
    # Two Gaussian variables of correlation r have -log2(1 - r^2) / 2 bits.
    for correlation in (0.0, 0.8):
        a, b = random.standard_normal((2, 8000))
        b = correlation * a + math.sqrt(1 - correlation**2) * b
        expected = -math.log2(1 - correlation**2) / 2
        assert codebook.continuous_mutual_information(a, b) == pytest.approx(expected, abs=0.05)
    assert codebook.continuous_mutual_information(a[:3], b[:3]) is None


def test_independent_coordinates_get_what_the_grid_has_by_itself(tmp_path: Path) -> None:
    uniform = np.random.default_rng(0).uniform(-1, 1, (20_000, 2))
    for kind, levels, alone in (
        # 3 x 3 corners and 2 x 2 centres by hand: 2 H(x) - log2 13, with x as often as (3, 2, 3, 2, 3).
        ("rhombic", (3, 3), 2 * codebook.entropy(np.array([3, 2, 3, 2, 3])) - math.log2(13)),
        ("rectangular", (5, 5), 0),
        # Rows in turn are shifted: the first coordinate tells which; 3 rows of one kind and 2 of the other.
        ("hexagonal", (5, 5), codebook.entropy(np.array([3, 2]))),
    ):
        codec = Codec.from_pretrained(model_of(tmp_path / kind, kind, levels), device="cpu")
        half = (levels[0] - 1) / 2
        row = analysis.pair_information(codec, (uniform * half).astype(np.float32)[:, None])[0]
        assert row["even_grid"] == pytest.approx(alone, abs=1e-9)
        assert row["before"] == pytest.approx(0, abs=0.03)
        if kind == "rectangular":
            assert row["after"] == pytest.approx(0, abs=0.03)
        else:
            assert row["after"] > 0.5


def test_collected_codes_are_those_of_the_codec(tiny_codec: Codec, folder: Path) -> None:
    files = sorted(folder.rglob("*.wav"))
    done: list[int] = []
    corpus = analysis.collect(tiny_codec, files, done.append)
    assert done == [1, 2, 3, 4, 5]
    assert len(corpus.skipped) == 1
    assert "broken.wav" in corpus.skipped[0]
    expected = []
    for path in files[:4]:
        audio, rate = soundfile.read(path, dtype="float32")
        expected.append(tiny_codec.encode(audio, rate).indices[0].numpy())
    assert corpus.starts == [0, 500, 1000, 1500]
    np.testing.assert_array_equal(corpus.indices, np.concatenate(expected))
    assert corpus.seconds == pytest.approx(4)
    # The points kept are those the codes were made from.
    assert corpus.points is not None
    snapped = tiny_codec.model.quantizer.nearest(torch.from_numpy(corpus.points)).numpy()
    np.testing.assert_array_equal(snapped, corpus.indices)
    with pytest.raises(Q2D2Error, match="none of the 1 files"):
        analysis.collect(tiny_codec, files[4:])


def test_points_are_thinned_evenly(tiny_codec: Codec, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(folder.rglob("?.wav"))
    whole = analysis.collect(tiny_codec, files)
    monkeypatch.setattr(analysis, "MAX_POINTS", 600)
    thin = analysis.collect(tiny_codec, files)
    assert whole.points is not None
    assert thin.points is not None
    np.testing.assert_array_equal(thin.points, whole.points[::4])
    np.testing.assert_array_equal(thin.indices, whole.indices)


@pytest.mark.parametrize("offset", [0.25, 0.5])
def test_cells_hold_what_is_snapped_to_their_point(tmp_path: Path, offset: float) -> None:
    from matplotlib.path import Path as Outline

    from q2d2cli.quantizers.grids import HexagonalGrid, RectangularGrid, RhombicGrid

    random = torch.Generator().manual_seed(0)
    for grid in (HexagonalGrid((5, 5), hexagonal_offset=offset), RectangularGrid((4, 6)), RhombicGrid((5, 7))):
        points = grid.points.numpy()
        cells = pictures.voronoi_cells(points)
        assert len(cells) == len(points)
        low, high = points.min(0), points.max(0)
        sample = torch.from_numpy(low) + torch.rand((500, 2), generator=random) * torch.from_numpy(high - low)
        for place, index in zip(sample.numpy(), grid.nearest(sample).tolist(), strict=True):
            # Voronoi vertices may come in either direction: the radius is a tolerance both ways.
            outline = Outline(cells[index])
            assert outline.contains_point(place, radius=1e-4) or outline.contains_point(place, radius=-1e-4)


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height in a PNG file's header."""
    data = picture.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert data.endswith(b"IEND\xaeB`\x82")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize(
    ("kind", "levels"), [("rhombic", (7, 7, 5, 5)), ("rectangular", (4, 6)), ("hexagonal", (5, 5) * 5)]
)
def test_pictures(tmp_path: Path, folder: Path, kind: str, levels: tuple[int, ...]) -> None:
    import matplotlib.image

    codec = Codec.from_pretrained(model_of(tmp_path / "model", kind, levels), device="cpu")
    corpus = analysis.collect(codec, [folder / "a" / "1.wav"])
    numbers = analysis.analyze(codec, corpus)
    grids = [grid.points.numpy() for grid in codec.model.quantizer.grids]
    assert corpus.points is not None
    written = pictures.draw(tmp_path, numbers, grids, corpus.points)
    assert sorted(path.name for path in written) == PICTURES
    for path in written:
        width, height = size_of(path)
        assert 800 <= width <= 4000
        assert 400 <= height <= 3000
        image = matplotlib.image.imread(path)
        assert image.shape[:2] == (height, width)
        assert len(np.unique(image[..., :3] @ (1, 256, 65_536))) > 50


def test_command(run: Run, tiny: Path, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    result = run("analyze", folder, "-m", tiny, "--out", out, "--json")
    # A file was skipped.
    assert result.returncode == 1
    assert "broken.wav" in result.stderr.decode()
    assert result.stderr.count(b"\n") == 1
    numbers = json.loads(result.stdout)
    assert (numbers["files"], numbers["frames"], numbers["levels"]) == (4, 2000, [5, 5, 3, 3])
    assert [row["points"] for row in numbers["pairs"]] == [41, 13]
    for row in numbers["pairs"]:
        assert sum(row["counts"]) == 2000
        assert 0 < row["given_previous"] <= row["entropy"] <= row["entropy_max"]
        assert 0 < row["utilization"] <= 1
        assert row["mutual_information"]["after"] > 0
    assert numbers["codebook"]["size"] == 41 * 13
    assert json.loads((out / "analysis.json").read_text()) == numbers
    assert sorted(path.name for path in out.iterdir()) == sorted(["analysis.json", *PICTURES])

    again = run("analyze", folder / "a", "-m", tiny, "--out", out)
    assert (again.returncode, again.stdout) == (2, b"")
    assert b"--force" in again.stderr
    forced = run("analyze", folder / "a", "-m", tiny, "--out", out, "--force", "--quiet", "--limit", 2)
    assert (forced.returncode, forced.stderr) == (0, b"")
    text = forced.stdout.decode()
    for words in ("tiny: 2 files", "1000 frames", "perplexity", "mutual information"):
        assert words in text


@pytest.mark.parametrize(("kind", "levels"), [("fsq", (5, 5, 5)), ("rvq", (16, 16))])
def test_command_without_grids(run: Run, tmp_path: Path, kind: str, levels: tuple[int, ...]) -> None:
    model = model_of(tmp_path / "model", kind, levels)
    result = run("analyze", CLIP, "-m", model, "--out", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr.decode()
    assert result.stderr.decode().splitlines() == [
        f"q2d2: no pictures: quantizer {kind} of model tiny-{kind} has no two-dimensional grids"
    ]
    rows = json.loads(result.stdout)["pairs"]
    assert [row["points"] for row in rows] == list(levels)
    assert all("mutual_information" not in row for row in rows)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["analysis.json"]
    assert "mutual" not in run("analyze", CLIP, "-m", model).stdout.decode()


def test_command_refuses(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no audio")
    (tmp_path / "empty").mkdir()
    for arguments, code, words in (
        ([tmp_path / "none"], 2, "none does not exist"),
        ([tmp_path / "empty"], 2, "no audio found"),
        ([tmp_path / "file"], 1, "none of the 1 files could be read"),
        ([CLIP, "--out", tmp_path / "file"], 2, "cannot make folder"),
        ([CLIP, "--limit", "0"], 2, "--limit"),
        ([CLIP, "--device", "tpu9"], 2, "tpu9"),
    ):
        result = run("analyze", *arguments, "-m", tiny)
        text = result.stderr.decode()
        assert (result.returncode, result.stdout, text.count("\n")) == (code, b"", 1), text
        assert words in text


def test_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r'analyze needs more packages: pip install "q2d2\[eval\]"'):
        check_packages("analyze", "sklearn", "matplotlib")


def test_help_stays_light() -> None:
    code = "import sys, q2d2cli.cli; sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
