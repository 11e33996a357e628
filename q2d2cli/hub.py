"""The Hugging Face Hub: folders of files from it, in its cache, and to it. Knows nothing of what the files are."""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from q2d2cli.errors import Q2D2Error, UsageError

MAIN = "main"
"""The revision that is meant where none is named."""
CHUNK = 1 << 20


def is_id(name: str) -> bool:
    """Whether a name could be one on the Hub: `owner/name` or `owner/name@revision`."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@\S+)?", name) is not None


def fetch(name: str, files: Sequence[str], *, quiet: bool = False) -> Path:
    """The folder of a repository in the cache, brought up to date where the network allows.

    Args:
        name: `owner/name`, or `owner/name@revision` with a branch, tag or whole commit hash.
        files: patterns of the files that are wanted; no other is fetched.
        quiet: no progress bar; there is none where standard error is no terminal.

    Raises:
        UsageError: if there is no such repository or revision, it may not be read, or the network is not there.
        Q2D2Error: if a file does not come whole or is not what the Hub says it is.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    wanted, bars = list(files), make_bars(quiet)
    with explained(name):
        folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=wanted, tqdm_class=bars))
    for path in folder.iterdir():
        verify(path, name)
    return folder


def make_bars(quiet: bool) -> Any:
    """A class of progress bars that show nothing unless they are wanted and seen."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            hidden = quiet or not sys.stderr.isatty()
            super().__init__(*arguments, **{**settings, "disable": hidden or settings.get("disable")})

    return Bar


def verify(path: Path, name: str) -> None:
    """Compare a file with its checksum, which is its name in the cache: SHA-256, or Git's SHA-1 of small files.

    A file that differs is removed, so that it is fetched anew.

    Raises:
        Q2D2Error: if it differs.
    """
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", blob.name):
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
    else:
        return  # a cache without links has no checksums
    with blob.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        path.unlink()
        raise Q2D2Error(f"{path.name} of {name!r} is not what the Hub says it is (checksum): fetch it again")


def snapshots() -> Iterator[tuple[str, Path]]:
    """Name, as `fetch` takes it, and folder of every model repository's revision in the cache."""
    from huggingface_hub import constants

    for repository in sorted(Path(constants.HF_HUB_CACHE).glob("models--*--*")):
        name = "/".join(repository.name.split("--")[1:])
        refs = {path.read_text().strip(): path.name for path in sorted((repository / "refs").glob("*"))}
        for folder in sorted((repository / "snapshots").glob("*")):
            revision = refs.get(folder.name, folder.name)
            yield (name if revision == MAIN else f"{name}@{revision}"), folder


def push(files: dict[str, bytes | Path], name: str, message: str, *, private: bool = False) -> str:
    """Upload files in one commit, into a repository that is made if it is not there.

    Args:
        files: contents, or where they are, by their names in the repository.
        name: `owner/name`.
        message: of the commit.
        private: whether a repository that is made is private.

    Returns:
        Hash of the commit.

    Raises:
        UsageError: if one may not write there, or the network is not there.
        Q2D2Error: if it fails.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    additions = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()]
    api = HfApi()
    with explained(name, "pushed"):
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.create_commit(name, additions, commit_message=message)
    return str(commit.oid)


@contextlib.contextmanager
def explained(name: str, done: str = "fetched") -> Iterator[None]:
    """Turn what the Hub's library raises into one line."""
    from huggingface_hub import constants, errors

    # Of httpx or requests, whichever the library is built on; not all of it derives from OSError.
    http_error: Any = errors.HfHubHTTPError.__bases__[0]
    repository, _, revision = name.partition("@")
    try:
        yield
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{repository!r} is gated: ask for access at {constants.ENDPOINT}/{repository}, log in with hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"no repository {repository!r} on the Hub, or it is private: check the name, or log in with hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UsageError(f"{repository!r} has no revision {revision!r} on the Hub") from error
    except errors.LocalEntryNotFoundError as error:
        if isinstance(answer := error.__cause__, errors.HfHubHTTPError):
            raise refused(name, done, answer.response.status_code) from error
        raise UsageError(
            f"{name!r} is not here and the Hub cannot be reached: check the network, or take one of q2d2 models list"
        ) from error
    except errors.HFValidationError as error:
        raise UsageError(
            f"{name!r} cannot be a repository on the Hub: write owner/name or owner/name@revision"
        ) from error
    except errors.HfHubHTTPError as error:
        raise refused(name, done, error.response.status_code) from error
    except (http_error, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Q2D2Error(f"{name!r} cannot be {done} ({reason}): check the network and try again") from error


def refused(name: str, done: str, status: int) -> Q2D2Error:
    """What to say when the Hub answers with this status."""
    if status in (401, 403):
        return UsageError(f"{name!r} cannot be {done}: the Hub forbids it ({status}), log in with hf auth login")
    return Q2D2Error(f"{name!r} cannot be {done}: the Hub answered {status}; try again later")
