"""`tokenize --engine ray` on a real cluster of two nodes on this machine, one of which is killed in the middle.

    pip install "q2d2[ray]" && Q2D2_RAY=1 pytest tests/test_corpus_ray.py

Left out otherwise: they take most of a minute, and Ray is large to install.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Run
from corpus_parts import files_of, write_clips

CLIPS = 100

pytestmark = pytest.mark.skipif(not os.environ.get("Q2D2_RAY"), reason="runs with Q2D2_RAY=1")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_register_timeout_seconds", "300")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    for _ in range(2):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000, include_dashboard=False)
    yield cluster
    cluster.shutdown()


def has_actor(node: Any) -> bool:
    """Whether an actor with the model lives on this node of the cluster."""
    raylet = node.all_processes["raylet"][0].process.pid
    children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
    return any(b"RayWorker" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


def test_a_lost_node_changes_nothing(
    call: Run, tmp_path: Path, tiny: Path, clip: tuple[np.ndarray, int], cluster: Any
) -> None:
    write_clips(tmp_path / "corpus", clip[0], CLIPS)
    (tmp_path / "corpus" / "broken.wav").write_bytes(b"RIFF")
    command = ["tokenize", tmp_path / "corpus", "--model", tiny, "--device", "cpu", "--shard-clips", "1"]
    assert call(*command, "--out", tmp_path / "one").returncode == 1
    manifest = tmp_path / "two" / "manifest.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "q2d2cli", *map(str, command), "--out", tmp_path / "two", "--engine", "ray"],
        env={**os.environ, "RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE,
    )
    lost = cluster.list_all_nodes()[-1]
    while process.poll() is None and (not has_actor(lost) or manifest.read_bytes().count(b"\n") < 10):
        time.sleep(0.05)
    done = manifest.read_bytes().count(b"\n") - 1
    cluster.remove_node(lost, allow_graceful=False)
    _, words = process.communicate(timeout=400)
    assert process.returncode == 1, words
    assert done < CLIPS, "the job was over before the node was lost"
    assert b"broken.wav" in words
    assert b"Traceback" not in words
    assert files_of(tmp_path / "two") == files_of(tmp_path / "one")
    lines = [sorted((tmp_path / name / "manifest.jsonl").read_bytes().splitlines()[1:]) for name in ("one", "two")]
    assert lines[0] == lines[1]
    assert call("tokenize", "--verify", tmp_path / "two").returncode == 0


def test_no_cluster_ends_in_one_line(
    call: Run, tmp_path: Path, tiny: Path, clip: tuple[np.ndarray, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path / "corpus", clip[0], 1)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    result = call("tokenize", tmp_path / "corpus", "--out", tmp_path / "out", "--model", tiny, "--engine", "ray")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(b"q2d2: cannot reach the Ray cluster: Connection refused; ")
    assert b"Traceback" not in result.stderr
