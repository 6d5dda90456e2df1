"""Files of a Hub repository through the official client's cache, with errors that say what to do."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

HUB = "hf-hub:"
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./+-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubRepo:
    """A repository at a revision. `commit` is known after the first file, so that all files come from one commit."""

    repo_id: str
    revision: str | None = None
    endpoint: str | None = None  # None: the client's own, HF_ENDPOINT or huggingface.co
    token: str | bool | None = None  # None: the client's own, HF_TOKEN or the stored login; False: send none
    cache_dir: Path | None = None
    commit: str | None = None

    @classmethod
    def parse(
        cls,
        name: str,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> HubRepo:
        """Read `hf-hub:org/repo[@revision]`.

        Raises:
            ValueError: for another form; a name cannot reach outside the cache (`..` is refused).
        """
        repo_id, at, revision = name.removeprefix(HUB).partition("@")
        check_repo_id(repo_id)
        if at and (not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith(("/", ".lock"))):
            raise ValueError(
                f"Expected a branch, tag or commit after '@', got '{revision}' in '{name}'. Use e.g. '@main'."
            )
        return cls(repo_id, revision or None, endpoint, token, None if cache_dir is None else Path(cache_dir))

    def __str__(self) -> str:
        revision = (self.commit or self.revision or "")[:12]
        return f"{self.repo_id}@{revision}" if revision else self.repo_id

    def file(self, filename: str) -> tuple[Path, HubRepo]:
        """Path of one file in the cache, downloading it if needed, and this repository pinned to the file's commit.

        Raises:
            FileNotFoundError: if the repository, the revision or the file is missing, or is not cached while offline.
            PermissionError: if the token does not give access.
            ConnectionError: if the server cannot be reached or hangs up; what was cut off is never used.
            ValueError: if what arrived is not what the server announced.
        """
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        check_relative(filename)
        revision = self.commit or self.revision
        where = {"revision": revision, "cache_dir": self.cache_dir}
        cached = try_to_load_from_cache(self.repo_id, filename, **where)
        with explained(self, filename):
            found = hf_hub_download(self.repo_id, filename, endpoint=self.endpoint, token=self.token, **where)
        path = Path(found)
        if found != cached:
            _check_digest(path, self, filename)
        folder = path
        for _ in Path(filename).parts:
            folder = folder.parent
        return path, replace(self, commit=folder.name if _COMMIT.fullmatch(folder.name) else None)


def check_repo_id(repo_id: str) -> None:
    """Refuse what is not `org/name`."""
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id or repo_id.endswith((".git", ".", "-")):
        raise ValueError(
            f"Expected a Hub repository 'org/name' of letters, digits, '-', '_' and '.', got '{repo_id}'. "
            f"Write '{HUB}org/name' or '{HUB}org/name@revision'; for a folder on this machine 'local-dir:PATH'."
        )


def check_relative(filename: str) -> None:
    """Refuse file names that could leave the folder they are looked for in."""
    parts = re.split(r"[/\\]", filename)
    if any(part in ("", ".", "..") or ":" in part for part in parts) or "\0" in filename:
        raise ValueError(
            f"Expected a file name inside the repository, got '{filename}'. Use a relative path without '..'."
        )


@contextlib.contextmanager
def explained(repo: HubRepo, filename: str | None = None) -> Iterator[None]:
    """Turns the client's exceptions into built-in ones with three-part messages."""
    try:
        yield
    except Exception as error:
        clearer = explain(error, repo, filename)
        if clearer is None:
            raise
        raise clearer from error


def explain(error: BaseException, repo: HubRepo, filename: str | None = None) -> Exception | None:
    """The built-in exception to raise for one of the Hub client's, or None if it is not about the Hub."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx

    if type(error) is RuntimeError and error.__cause__ is not None:  # an upload in one of the client's threads
        return explain(error.__cause__, repo, filename)
    what = f"{filename} of {repo.repo_id}" if filename else repo.repo_id
    server = repo.endpoint or constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    token = "The token gives no access to it" if repo.token else "Pass token=... or run `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        return PermissionError(f"{repo.repo_id} on {server} is gated (HTTP {status}). Accept its terms there. {token}.")
    if isinstance(error, errors.RevisionNotFoundError):
        return FileNotFoundError(
            f"{repo.repo_id} on {server} has no revision '{repo.revision}'. Give a branch, tag or commit that exists, "
            f"or none for the newest: '{HUB}{repo.repo_id}'."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        kind = FileNotFoundError if status == 404 else PermissionError
        return kind(
            f"Expected a model repository '{repo.repo_id}' on {server}; it does not exist, or it is private (HTTP "
            f"{status}). Check the name. If it is private: {token[0].lower()}{token[1:]}."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.is_offline_mode():
            return FileNotFoundError(
                f"{what} is not in the cache ({repo.cache_dir or constants.HF_HUB_CACHE}) and HF_HUB_OFFLINE is set. "
                "Unset it once to download, or give the cache_dir that holds it."
            )
        return ConnectionError(
            f"{server} cannot be reached and {what} is not in the cache ({repo.cache_dir or constants.HF_HUB_CACHE}). "
            "Check the connection and `endpoint`, then try again."
        )
    if isinstance(error, errors.EntryNotFoundError):
        return FileNotFoundError(
            f"{repo} on {server} has no file '{filename}'. Folders of this package hold config.json and "
            "model.safetensors, as push_to_hf_hub writes them; check the repository's file list."
        )
    if status in (401, 403):
        return PermissionError(f"No access to {what} on {server} (HTTP {status}). {token}.")
    if isinstance(error, httpx.TransportError | errors.OfflineModeIsEnabled):
        return ConnectionError(
            f"The connection to {server} broke while fetching {what} ({error or type(error).__name__}). What arrived "
            "is not used; try again and the download continues."
        )
    if isinstance(error, errors.HfHubHTTPError):
        return ConnectionError(f"{server} answered HTTP {status} for {what} ({error}). Try again later.")
    if isinstance(error, errors.FileMetadataError):
        return ConnectionError(f"{server} does not answer like a Hub for {what} ({error}). Check `endpoint`.")
    if type(error) is OSError and "Consistency check failed" in str(error):
        return ValueError(f"{what} arrived truncated from {server} ({error}). Nothing of it is used; try again.")
    return None


def _check_digest(path: Path, repo: HubRepo, filename: str) -> None:
    """Compare a fresh download with the digest that the cache files it under; a damaged one is removed at once."""
    blob = path.resolve()
    if len(blob.name) == 64:
        digest = hashlib.sha256()
    elif len(blob.name) == 40:
        digest = hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    else:  # no links on this file system: the cache keeps no digest
        return
    with blob.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        path.unlink()
        blob.unlink(missing_ok=True)
        raise ValueError(
            f"{filename} of {repo.repo_id} arrived damaged: expected digest {blob.name[:12]}, got "
            f"{digest.hexdigest()[:12]}. It was removed from the cache; try again."
        )


LOCAL = "local-dir:"


@dataclass
class ModelSource:
    """A model folder, on this machine or on the Hub."""

    folder: Path | None = None
    repo: HubRepo | None = None

    @classmethod
    def parse(
        cls,
        name: str,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> ModelSource | None:
        """Read `local-dir:PATH` or `hf-hub:org/repo[@revision]`; None for the name of an architecture.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: for an unknown scheme, or a path without one.
        """
        if name.startswith(LOCAL):
            folder = Path(name.removeprefix(LOCAL)).expanduser()
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"'{name}' names no folder ({folder.resolve()}). Give the folder that save_for_hf wrote."
                )
            return cls(folder=folder)
        if name.startswith(HUB):
            return cls(repo=HubRepo.parse(name, endpoint=endpoint, token=token, cache_dir=cache_dir))
        scheme, colon, rest = name.partition(":")
        if colon:
            raise ValueError(
                f"Unknown scheme '{scheme}:' in '{name}'. Known: '{LOCAL}FOLDER' and '{HUB}org/repo[@revision]'. "
                f"For a folder: '{LOCAL}{rest}'."
            )
        if "/" in name or "\\" in name:
            raise ValueError(
                f"'{name}' is no model name. For a folder on this machine write '{LOCAL}{name}', for a repository on "
                f"the Hub '{HUB}{name}'."
            )
        return None

    def __str__(self) -> str:
        return str(self.folder if self.folder is not None else self.repo)

    @property
    def pinned(self) -> str:
        """The name of exactly what was read so far."""
        if self.repo is None:
            return f"{LOCAL}{self.folder}"
        revision = self.repo.commit or self.repo.revision
        return f"{HUB}{self.repo.repo_id}" + (f"@{revision}" if revision else "")

    def file(self, filename: str) -> Path:
        """Where the file is on this machine, after a download if need be. All files of a source are of one commit."""
        if self.folder is not None:
            return self.folder / filename
        assert self.repo is not None
        path, self.repo = self.repo.file(filename)
        return path
