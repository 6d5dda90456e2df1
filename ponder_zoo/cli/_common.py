"""What commands share: arguments, and how results are written."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Subparsers = Any  # argparse keeps the class private


def add_command(
    commands: Subparsers, name: str, run: Callable[[Any], int], description: str, example: str
) -> argparse.ArgumentParser:
    """A command with its help: the first sentence in the list of commands, all of it and an example in its own."""
    parser = commands.add_parser(
        name,
        help=description.split(". ")[0].rstrip("."),
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_access(parser: argparse.ArgumentParser) -> None:
    """Where the Hub is and who asks."""
    parser.add_argument("--endpoint", help="address of the Hub (default: HF_ENDPOINT, or huggingface.co)")
    parser.add_argument("--token", help="for private repositories (default: HF_TOKEN, or the stored login)")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How to run a model."""
    parser.add_argument("--condition", help="data set whose norms to use, for models that have several (see `info`)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--backend", default="auto", help="of sparse convolutions: auto, torch, triton or spconv")
    add_access(parser)


def access(options: Any) -> dict[str, Any]:
    """The options of `add_access`, for the factories."""
    return {"endpoint": options.endpoint, "token": options.token}


def pick_device(name: str) -> Any:
    """A torch device that is usable here.

    Raises:
        ValueError: for a device that torch does not know or does not find.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"Expected a device usable here, got '{name}' ({reason}). See `ponder-zoo doctor`.") from error
    return device


def model_name(name: str | Path) -> str:
    """A name for the factories. A folder's path is taken for `local-dir:`, a run's for that of its export."""
    text = str(name)
    if text.startswith("hf-hub:"):
        return text
    folder = Path(text.removeprefix("local-dir:")).expanduser()
    if not folder.is_dir():
        return text
    exported = (folder / "export" / "config.json").is_file() and not (folder / "config.json").is_file()
    return f"local-dir:{folder / 'export' if exported else folder}"


def say(text: str) -> None:
    """A line of the result."""
    sys.stdout.write(f"{text}\n")


def say_json(value: Any) -> None:
    """The result for programs."""
    say(json.dumps(value, indent=2, default=str))


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Columns of text, aligned to the left, or to the right where their number is in `right`."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
