"""What a release is made of beside the code: its citation, container and workflow say what is so."""

from __future__ import annotations

import os
import re
import shlex

import yaml
from conftest import ROOT

from q2d2cli import __version__


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "MIT"
    assert "2512.01537" in citation["references"][0]["url"]


def test_the_container_copies_what_is_there_and_runs_as_a_user() -> None:
    lines = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8")).splitlines()
    steps = [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines if line and line[0] != "#"]
    allowed = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for step, rest in steps:
        if step == "COPY" and "--from" not in rest:
            for source in shlex.split(rest)[:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in allowed, source
    last = len(steps) - 1 - [step for step, _ in reversed(steps)].index("FROM")
    users = [rest for step, rest in steps[last:] if step == "USER"]
    assert users
    assert users[-1] not in ("root", "0")


def test_the_workflow_runs_what_is_there() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    runs = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert ".ci/run" in runs
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "mkdocs build --strict" in runs
