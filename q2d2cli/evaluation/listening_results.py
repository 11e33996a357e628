"""Results of listening tests: many listeners' files read, screened and summed up."""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from q2d2cli.errors import Q2D2Error, UsageError
from q2d2cli.evaluation.kinds import Kind
from q2d2cli.evaluation.listening import HIDDEN_REFERENCE
from q2d2cli.evaluation.statistics import summarize
from q2d2cli.files import check_input, refuse_device

SCREEN_SCORE, SCREEN_PERCENT = 90, 15
"""Post-screening of BS.1534-3: who rates the hidden reference below 90 in more than 15% of the trials is left out."""

Name = Annotated[str, Field(min_length=1)]


class Rating(BaseModel):
    """One answer.

    Attributes:
        trial: name of the excerpt.
        system: what was rated.
        baseline: CMOS: the system it was compared with; MUSHRA: empty.
        score: MUSHRA: 0 to 100; CMOS: -3 to 3, positive where `system` is better than `baseline`.
        position: where `system` was on the page: 1 to 9, A or B.
        page: number of the page in this listener's order.
        seconds: spent on the page.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    trial: Name
    system: Name
    baseline: str
    score: int
    position: Name
    page: Annotated[int, Field(ge=1)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Session(BaseModel):
    """One listener's answers to one test, as the page saves them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["q2d2-listening-1"]
    test: Name
    kind: Kind
    title: str
    listener: Name
    session: Name
    finished: Name
    ratings: Annotated[list[Rating], Field(min_length=1)]

    @model_validator(mode="after")
    def _complete(self) -> Session:
        low, high = (0, 100) if self.kind is Kind.MUSHRA else (-3, 3)
        seen = set()
        for rating in self.ratings:
            if not low <= rating.score <= high:
                raise ValueError(f"a score of {rating.score} is not in {low} to {high}")
            if (rating.trial, rating.system) in seen:
                raise ValueError(f"{rating.system!r} is rated twice in trial {rating.trial!r}")
            seen.add((rating.trial, rating.system))
        if self.kind is Kind.MUSHRA:
            for trial in {rating.trial for rating in self.ratings}:
                if (trial, HIDDEN_REFERENCE) not in seen:
                    raise ValueError(f"trial {trial!r} has no {HIDDEN_REFERENCE}")
        elif len({rating.baseline for rating in self.ratings}) > 1:
            raise ValueError("more than one system is the baseline")
        return self


SESSION_COLUMNS = [name for name in Session.model_fields if name != "ratings"]
RATING_COLUMNS = list(Rating.model_fields)
CSV_COLUMNS = [*SESSION_COLUMNS, *RATING_COLUMNS, "rows"]
"""`rows` is the number of rows of the file, so that a cut one is noticed."""


def listening_results(paths: Sequence[Path]) -> dict[str, Any]:
    """Sum up listening tests.

    Both files of a listener may be among `paths`: a session counts once.

    Args:
        paths: CSV and JSON files that the page of `build_listening_test` saved, in any mixture.

    Returns:
        By kind of test (`mushra`, `cmos-q`, `cmos-p`), for those that occur: `title`, `listeners` and `trials`
        counted, and by system `n` ratings, `mean` and `interval95` (half width by Student's t over the ratings,
        None below two).

        MUSHRA also gives `median` and `quartiles` [25%, 75%], and `excluded` lists `listener`, `file` and `reason`
        of those that BS.1534-3's post-screening leaves out; they are not in the numbers. Scores are 0 to 100, and
        the hidden reference and the low anchor are among the systems.

        CMOS also gives `baseline`, and by system the shares in [0, 1] of ratings that prefer it (`preferred`), the
        baseline (`baseline_preferred`) or neither (`same`). Scores are -3 to 3, positive where the system is better.

    Raises:
        UsageError: if there is no file, one cannot be opened, or two are of different tests of one kind.
        Q2D2Error: if a file is damaged or no result of a listening test.
    """
    if not paths:
        raise UsageError("no results: name the files that listeners saved")
    sessions: dict[str, tuple[Path, Session]] = {}
    tests: dict[Kind, tuple[Path, Session]] = {}
    for path in paths:
        session = read_session(path)
        known_path, known = sessions.setdefault(session.session, (path, session))
        if known != session:
            raise Q2D2Error(f"{path} and {known_path} are of one session but differ: one of them was changed")
        first_path, first = tests.setdefault(session.kind, (path, session))
        if first.test != session.test:
            raise UsageError(
                f"{path} and {first_path} are of different {session.kind} tests: give the files of one test at a time"
            )
        if answered(first) != answered(session):
            raise Q2D2Error(f"{path} and {first_path} do not answer the same trials: one of them is incomplete")
    summaries: dict[str, Any] = {}
    for kind in Kind:
        if kind in tests:
            of_kind = [entry for entry in sessions.values() if entry[1].kind == kind]
            summaries[kind.value] = (
                mushra(of_kind) if kind is Kind.MUSHRA else cmos([session for _, session in of_kind])
            )
    return summaries


def answered(session: Session) -> set[tuple[str, str]]:
    """Trial and system of every rating."""
    return {(rating.trial, rating.system) for rating in session.ratings}


def read_session(path: Path) -> Session:
    """Read a CSV or JSON file of one listener; the content decides which it is.

    Raises:
        UsageError: if it cannot be opened.
        Q2D2Error: if it is damaged or something else.
    """
    check_input(path)
    refuse_device(path)
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets put a byte order mark in front
    except OSError as error:
        raise Q2D2Error(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Q2D2Error(f"{path} is not a result of a listening test: it is not text") from error
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else from_csv(text)
        return Session.model_validate(data)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        reason = f"{where}: {problem['msg']}" if where else problem["msg"]
        raise Q2D2Error(f"{path} is not a whole result of a listening test: {reason}") from error
    except (ValueError, csv.Error, RecursionError) as error:
        raise Q2D2Error(f"{path} is not a whole result of a listening test: {error}") from error


def from_csv(text: str) -> dict[str, Any]:
    """The fields of a Session out of its CSV form.

    Raises:
        ValueError, csv.Error: if it has not that form.
    """
    header, *rows = csv.reader(io.StringIO(text), strict=True) if text.strip() else [[]]
    if header != CSV_COLUMNS:
        raise ValueError(f"its first line is not {','.join(CSV_COLUMNS)}")
    if not rows or any(len(row) != len(header) or row[-1] != str(len(rows)) for row in rows):
        raise ValueError("rows are cut or missing")
    entries = [dict(zip(header, row, strict=True)) for row in rows]
    session = {name: entries[0][name] for name in SESSION_COLUMNS}
    if any(entry[name] != value for entry in entries for name, value in session.items()):
        raise ValueError(f"{', '.join(SESSION_COLUMNS)} are not the same in all rows")
    return {**session, "ratings": [{name: entry[name] for name in RATING_COLUMNS} for entry in entries]}


def mushra(sessions: Sequence[tuple[Path, Session]]) -> dict[str, Any]:
    """Screen and sum up sessions of one MUSHRA test (see `listening_results`)."""
    excluded: list[dict[str, str]] = []
    kept: list[Session] = []
    for path, session in sessions:
        references = [rating.score for rating in session.ratings if rating.system == HIDDEN_REFERENCE]
        low = sum(score < SCREEN_SCORE for score in references)
        if 100 * low > SCREEN_PERCENT * len(references):
            reason = f"rated the {HIDDEN_REFERENCE} below {SCREEN_SCORE} in {low} of {len(references)} trials"
            excluded.append({"listener": session.listener, "file": str(path), "reason": reason})
        else:
            kept.append(session)
    systems: dict[str, Any] = {}
    for system, scores in by_system(kept).items():
        low_quartile, median, high_quartile = np.percentile(scores, [25, 50, 75])
        systems[system] = {
            **summarize(scores),
            "median": round(float(median), 4),
            "quartiles": [round(float(low_quartile), 4), round(float(high_quartile), 4)],
        }
    return {**counts(sessions[0][1], kept), "excluded": excluded, "systems": systems}


def cmos(sessions: Sequence[Session]) -> dict[str, Any]:
    """Sum up sessions of one CMOS test (see `listening_results`)."""
    systems: dict[str, Any] = {}
    for system, scores in by_system(sessions).items():
        signs = np.sign(scores)
        systems[system] = {
            **summarize(scores),
            "preferred": round(float(np.mean(signs > 0)), 4),
            "baseline_preferred": round(float(np.mean(signs < 0)), 4),
            "same": round(float(np.mean(signs == 0)), 4),
        }
    return {**counts(sessions[0], sessions), "baseline": sessions[0].ratings[0].baseline, "systems": systems}


def counts(test: Session, sessions: Sequence[Session]) -> dict[str, Any]:
    """What a test is called and how much of it there is."""
    trials = len({rating.trial for rating in test.ratings})
    return {"title": test.title, "listeners": len(sessions), "trials": trials}


def by_system(sessions: Sequence[Session]) -> dict[str, list[int]]:
    """Scores of all listeners and trials, by system in alphabetical order."""
    scores: dict[str, list[int]] = defaultdict(list)
    for session in sessions:
        for rating in session.ratings:
            scores[rating.system].append(rating.score)
    return dict(sorted(scores.items()))
