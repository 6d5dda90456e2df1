"""What a run tells: `metrics.jsonl` always, one bar or plain lines, and whatever tracker Accelerate has."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomic

logger = logging.getLogger(__name__)


def setup_logging(*, main: bool) -> None:
    """Show the package's messages on the terminal: all of the first process, warnings of the others."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("ponder_zoo").setLevel(logging.INFO if main else logging.WARNING)


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break  # only the last line can be short: each is appended in one write
    return rows


class RunLog:
    """Writes one JSON line per entry, and shows progress on the first process.

    Args:
        file: `metrics.jsonl` of the run folder.
        start: steps done before (0 for a new run). Lines after that step are dropped: the run goes through them again.
        total: steps of the whole run.
        main: whether this is the first process; the others do nothing.
        track: further place for the numbers, such as `accelerator.log`: called as `track(values, step=step)`.
        bar: show a bar; None does if the terminal can.
    """

    def __init__(
        self,
        file: Path,
        *,
        total: int,
        start: int = 0,
        main: bool = True,
        track: Callable[..., Any] | None = None,
        bar: bool | None = None,
    ) -> None:
        self.main, self.total, self.track = main, total, track
        self._bar: Any = None
        self._began, self._start = time.monotonic(), start
        if not main:
            return
        _rewrite(file, [row for row in read_metrics(file) if row.get("step", 0) <= start and start > 0])
        self._stream = file.open("a")
        if sys.stderr.isatty() if bar is None else bar:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Move the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def write(self, step: int, values: Mapping[str, Any], *, show: Sequence[str] = ()) -> None:
        """Append the values of a step; `show` names those that fit on a line of the terminal.

        NaN and infinity, which JSON does not have, become null.
        """
        if self.track is not None:
            self.track(dict(values), step=step)
        if not self.main:
            return
        row = {"step": step, "seconds": round(time.monotonic() - self._began, 3), **values}
        self._stream.write(json.dumps({key: _jsonable(value) for key, value in row.items()}) + "\n")
        self._stream.flush()
        text = "  ".join(f"{name} {_short(values[name])}" for name in show if name in values)
        if self._bar is not None:
            self._bar.set_postfix_str(text)
        elif text:
            logger.info("step %d/%d  %s  %s", step, self.total, text, self._remaining(step))

    def close(self) -> None:
        if self.main:
            self._stream.close()
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remaining(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self.total - step)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d} left"


def _rewrite(file: Path, rows: list[dict[str, Any]]) -> None:
    if not file.exists():
        return
    write_atomic(file, "".join(json.dumps(row) + "\n" for row in rows))


def _jsonable(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    value = value.item() if hasattr(value, "item") else value
    return f"{value:.4g}" if isinstance(value, float) else str(value)
