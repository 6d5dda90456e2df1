"""Files of a folder that lies on this machine, on a web server, in a bucket or on the Hub, by their relative paths."""

from __future__ import annotations

import http.client
import io
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

ATTEMPTS = 4  # of a request
PAUSE = 1.0  # seconds before the second attempt, twice as long before each further one
TIMEOUT = 60.0  # seconds without an answer
PASSING = (408, 429, 500, 502, 503, 504)  # codes of errors that may pass


def is_url(root: str | Path) -> bool:
    return "://" in str(root)


class Folder:
    """A folder by path or URL: `http(s)://`, or whatever fsspec knows (`hf://datasets/ORG/NAME`, `s3://`, `gs://`).

    Example:
        content = Folder("https://host/scannet").read("manifest.json")
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root).rstrip("/") if is_url(root) else str(Path(root).expanduser())

    def read(self, path: str) -> bytes:
        """All of a file.

        Raises:
            ValueError: if it is not there.
        """
        with self.open(path) as file:
            return file.read()

    def open(self, path: str, size: int | None = None) -> Any:
        """A file to seek in: only what is read is mapped, or fetched.

        Args:
            path: below the root.
            size: bytes of the file, which saves asking a server for it. None: unknown.

        Raises:
            ValueError: if it is not there.
        """
        try:
            if not is_url(self.root):
                import pyarrow

                return pyarrow.memory_map(str(Path(self.root) / path))
            if self.root.startswith(("http://", "https://")):
                return HTTPFile(f"{self.root}/{path}", size)
            import fsspec

            system, place = fsspec.url_to_fs(f"{self.root}/{path}")
            return system.open(place, "rb")
        except OSError as error:
            raise ValueError(
                f"{self.root}: expected a file {path}; {error}. Check data.root, and that the folder is complete."
            ) from error


class HTTPFile(io.RawIOBase):
    """A file of a web server, fetched in the ranges that are read; at once from servers that know no ranges."""

    def __init__(self, url: str, size: int | None = None) -> None:
        self.url, self.position = url, 0
        self.content: bytes | None = None
        self.size = int(_ask(url, "HEAD").headers["Content-Length"]) if size is None else size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        part = self._fetch(self.position, min(self.position + len(buffer), self.size))
        buffer[: len(part)] = part
        self.position += len(part)
        return len(part)

    def _fetch(self, start: int, stop: int) -> bytes:
        if start >= stop:
            return b""
        if self.content is None:
            answer = _ask(self.url, "GET", {"Range": f"bytes={start}-{stop - 1}"})
            if answer.status == 206:
                return answer.body
            self.content = answer.body
        return self.content[start:stop]


class Answer(NamedTuple):
    """What a web server sent."""

    status: int
    headers: Any
    body: bytes


def _ask(url: str, method: str, headers: dict[str, str] | None = None) -> Answer:
    """The answer of a server; what may pass (a broken connection, overload) is tried again."""
    for attempt in range(ATTEMPTS):
        request = urllib.request.Request(url, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return Answer(answer.status, answer.headers, answer.read())
        except (OSError, http.client.HTTPException) as error:
            final = isinstance(error, urllib.error.HTTPError) and error.code not in PASSING
            if final or attempt == ATTEMPTS - 1:
                raise OSError(f"{url}: {error}") from error
        time.sleep(PAUSE * 2**attempt)
    raise AssertionError("the loop returns or raises")
