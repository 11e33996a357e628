"""Models of the Hugging Face Hub: the real command and the real library against a server that speaks its interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import hub_server
import pytest
from conftest import CLIP, ROOT

from q2d2cli import checkpoints, hub

COMMANDS = """
import contextlib, io, json, sys
from q2d2cli.__main__ import run
results = []
for words in json.load(sys.stdin):
    sys.argv = ["q2d2", *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run()
    results.append([code, out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""
"""Commands one after the other in one process: what the Hub's library is to use it reads when it is imported."""


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def server(tiny: Path) -> Iterator[tuple[hub_server.Hub, str]]:
    state = hub_server.Hub()
    model = {path.name: path.read_bytes() for path in tiny.iterdir()}
    other = dict(model, **{"config.json": model["config.json"].replace(b'"tiny"', b'"small"')})
    repository = state.add("somebody/tiny", {**other, "pytorch_model.bin": b"never"})
    repository.refs["v1"] = repository.refs.pop("main")
    repository.commit({**model, "pytorch_model.bin": b"never", "run.py": b"never"})
    state.add("somebody/gated", model, error=(403, "GatedRepo"))
    state.add("somebody/down", model, error=(501, ""))
    state.add("somebody/half", model, cut=True)
    state.add("somebody/swapped", model, swapped=True)
    state.add(
        "somebody/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": model["model.safetensors"]}
    )
    state.add("somebody/pickle", {"config.json": model["config.json"], "pytorch_model.bin": b"never"})
    state.add("somebody/empty", {"README.md": b"# Nothing\n"})
    with hub_server.serve(state) as address:
        yield state, address


@pytest.fixture
def commands(tmp_path: Path, server: tuple[hub_server.Hub, str]) -> Callable[..., list[Result]]:
    """Run commands with a cache of their own, in an empty folder."""
    folder = tmp_path / "cwd"
    folder.mkdir()

    def together(*words: str, **environment: str) -> list[Result]:
        settings = {
            "PYTHONPATH": str(ROOT),
            "HF_ENDPOINT": server[1],
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "XDG_DATA_HOME": str(tmp_path / "data"),
            **environment,
        }
        ran = subprocess.run(
            [sys.executable, "-c", COMMANDS],
            input=json.dumps([line.split() for line in words]),
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, **settings},
            timeout=300,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr
        assert not ran.stderr
        return [Result(*result) for result in json.loads(ran.stdout)]

    return together


def test_a_model_is_fetched_once_and_then_needs_no_network(
    commands: Callable[..., list[Result]], server: tuple[hub_server.Hub, str], tiny: Path, tmp_path: Path
) -> None:
    state, _ = server
    repository = state.repositories["somebody/tiny"]
    pinned = repository.refs["v1"]
    pulled, same, old, encoded = commands(
        "models pull somebody/tiny",
        "models pull somebody/tiny -q",
        f"models pull somebody/tiny@{pinned}",
        f"encode {CLIP} out.q2d -m somebody/tiny@v1 -q",
    )
    assert pulled.code == 0, pulled.err
    assert repository.refs["main"] in pulled.err
    assert checkpoints.find(str(tiny)).fingerprint().hex() in pulled.err
    assert (same.code, same.err) == (0, "")
    assert old.code == 0, old.err
    assert encoded.code == 0, encoded.err
    # Weights came once for each revision that has them, the rest never.
    gets = [request for request in state.requests if request.startswith("GET /somebody/tiny/resolve/")]
    assert sum("model.safetensors" in request for request in gets) == 1
    assert not [request for request in state.requests if ".bin" in request or ".py" in request]
    before = len(state.requests)
    listed, table, decoded, encoded, missing = commands(
        "models list --json",
        "models",
        "decode out.q2d out.wav -q",  # the file names its weights, the cache has them
        f"encode {CLIP} again.q2d -m somebody/tiny@v1 -q",
        "models pull somebody/else",
        HF_HUB_OFFLINE="1",
    )
    rows = {row["name"]: row for row in json.loads(listed.out)}
    assert {"somebody/tiny", "somebody/tiny@v1"} <= rows.keys()
    assert rows["somebody/tiny"]["folder"].endswith(repository.refs["main"])
    assert "somebody/tiny@v1" in table.out
    assert (decoded.code, encoded.code) == (0, 0), decoded.err + encoded.err
    assert (tmp_path / "cwd" / "again.q2d").read_bytes() == (tmp_path / "cwd" / "out.q2d").read_bytes()
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "'somebody/else' is not here and the Hub cannot be reached" in missing.err
    assert len(state.requests) == before
    # No network instead of none wanted: what is in the cache serves.
    cached, missing, refused = commands(
        "models pull somebody/tiny",
        "models pull somebody/else",
        f"models push {tiny} somebody/mine",
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert cached.code == 0, cached.err
    assert "'somebody/else' is not here and the Hub cannot be reached" in missing.err
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "'somebody/mine' cannot be pushed (" in refused.err


WRONG = [
    ("somebody/nothing", 2, "no repository 'somebody/nothing' on the Hub, or it is private"),
    ("somebody/gated", 2, "'somebody/gated' is gated: ask for access at http"),
    ("somebody/tiny@v9", 2, "'somebody/tiny' has no revision 'v9'"),
    ("somebody/down", 1, "the Hub answered 501"),
    ("somebody/half", 1, "'somebody/half' cannot be fetched ("),
    ("somebody/swapped", 1, "model.safetensors of 'somebody/swapped' is not what the Hub says it is"),
    ("somebody/bert", 1, "does not describe a q2d2 model"),
    ("somebody/pickle", 1, "it has no model.safetensors, and nothing else is read"),
    ("somebody/empty", 1, "'somebody/empty' on the Hub is no q2d2 model: it has no config.json"),
    ("somebody/..", 2, "cannot be a repository on the Hub"),
    ("tiny", 2, "'tiny' is no Hub id: write owner/name"),
]


def test_what_cannot_be_had_is_said_in_one_line(commands: Callable[..., list[Result]], tmp_path: Path) -> None:
    results = commands(*(f"models pull {name}" for name, _, _ in WRONG), "models --json")
    for (name, code, words), result in zip(WRONG, results, strict=False):  # the last result is the list
        assert result.code == code, f"{name}: {result.err}"
        assert result.err.startswith("q2d2: ")
        assert result.err.count("\n") == 1, f"{name}: {result.err}"
        assert words in result.err, name
    # Nothing of it counts as a model.
    assert not [row for row in json.loads(results[-1].out) if "/" in row["name"]]


def test_a_model_is_pushed_with_its_card_and_comes_back(
    commands: Callable[..., list[Result]], server: tuple[hub_server.Hub, str], tiny: Path, tmp_path: Path
) -> None:
    state, _ = server
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in tiny.iterdir():
        (mine / path.name).write_bytes(path.read_bytes())
    (mine / "README.md").write_text("# tiny\n\n| PESQ | 1.5 |\n")
    (mine / "notes.txt").write_text("mine alone")
    token = {"HF_TOKEN": hub_server.TOKEN}
    pushed, pulled, again, wrong = commands(
        f"models push {mine} me/tiny --private",
        "models pull me/tiny",
        f"models push {mine} me/tiny",
        f"models push {mine} tiny",
        **token,
    )
    assert pushed.code == 0, pushed.err
    repository = state.repositories["me/tiny"]
    assert repository.private
    files = repository.commits[repository.refs["main"]]
    assert sorted(files) == ["README.md", "config.json", "model.safetensors"]
    assert files["README.md"].startswith(b"---\nlibrary_name: q2d2\n")
    assert files["README.md"].endswith((mine / "README.md").read_bytes())
    assert files["model.safetensors"] == (tiny / "model.safetensors").read_bytes()
    assert pulled.code == 0, pulled.err
    assert checkpoints.find(str(tiny)).fingerprint().hex() in pulled.err
    assert again.code == 0, again.err
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    anonymous, missing = commands(f"models push {mine} you/tiny", "models push nothing you/tiny", HF_TOKEN="")
    assert (anonymous.code, anonymous.err.count("\n")) == (2, 1), anonymous.err
    assert "log in with hf auth login" in anonymous.err
    assert missing.code == 2
    assert "you/tiny" not in state.repositories


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("owner/name", True),
        ("owner/name@v1.0", True),
        ("owner/name@refs/pr/1", True),
        ("owner/na.me-2_x", True),
        ("name", False),
        ("./name", False),
        ("../name", False),
        ("/tmp/name", False),
        ("a/b/c", False),
        ("owner/", False),
        ("", False),
    ],
)
def test_names_of_the_hub_are_told_from_paths(name: str, is_one: bool) -> None:
    assert hub.is_id(name) == is_one
