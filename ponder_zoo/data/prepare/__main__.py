"""Prepare a data set from its raw download.

    python -m ponder_zoo.data.prepare scannet --raw ~/downloads/scannet --out data/scannet
    python -m ponder_zoo.data.prepare scannet --help      # what a data set's raw folder must hold, and its options

Start it again after an interruption: finished scenes are kept. See docs/datasets.md.
"""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import READERS
from .runner import prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    outer = argparse.ArgumentParser(
        prog="python -m ponder_zoo.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    outer.add_argument("name", nargs="?", metavar="NAME", help=", ".join(READERS))
    outer.add_argument("-h", "--help", action="store_true")
    known, rest = outer.parse_known_args(arguments[:1])
    if known.name is None:
        outer.print_help()
        return 0 if known.help else 2
    if known.name not in READERS:
        print(f"error: expected a data set of {list(READERS)}, got {known.name!r}.", file=sys.stderr)
        return 2
    return _prepare(known.name, rest + arguments[1:])


def _prepare(name: str, arguments: Sequence[str]) -> int:
    cls = READERS[name].load()
    parser = argparse.ArgumentParser(
        prog=f"python -m ponder_zoo.data.prepare {name}",
        description=inspect.getdoc(cls),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--raw", type=Path, required=True, help="folder of the raw download; only read")
    parser.add_argument("--out", type=Path, required=True, help="folder of the prepared form")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes; 0: this one (%(default)s)")
    parser.add_argument("--strict", action="store_true", help="stop at the first damaged or missing item")
    names = add_options(parser, cls)
    values = vars(parser.parse_args(arguments))
    options = {key: values[key] for key in names}
    try:
        run = {key: values[key] for key in ("workers", "strict")}
        manifest = prepare(cls, values["raw"], values["out"], options=options, **run)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(summary(manifest))
    return 0


def add_options(parser: argparse.ArgumentParser, cls: type) -> list[str]:
    """An option for each argument of a reader beside `raw`; returns their names."""
    hints = typing.get_type_hints(cls.__init__)
    names = [name for name in inspect.signature(cls).parameters if name != "raw"]
    for name in names:
        default, kind = inspect.signature(cls).parameters[name].default, _plain(hints[name])
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=f"({default})")
        elif typing.get_origin(kind) is typing.Literal:
            parser.add_argument(flag, choices=typing.get_args(kind), default=default, help=f"({default})")
        else:
            parser.add_argument(flag, type=kind, default=default, help=f"({default})")
    return names


def _plain(hint: Any) -> Any:
    """`X` for `X | None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(each for each in typing.get_args(hint) if each is not type(None))
    return hint


def summary(manifest: dict[str, Any]) -> str:
    """What was prepared and what was left out, in words."""
    lines = [
        f"{split}: {count['scenes']} scenes, {count['points']} points, {count['frames']} images"
        for split, count in manifest["counts"].items()
    ]
    skipped = [(record["scene"], *entry) for record in manifest["scenes"] for entry in record["skipped"]]
    if skipped:
        lines.append(f"{len(skipped)} items left out, for example {': '.join(skipped[0])}")
    failed = manifest["failed"]
    if failed:
        lines.append(f"{len(failed)} scenes failed, for example {failed[0]['scene']}: {failed[0]['reason']}")
    return "\n".join([*lines, "manifest.json says all of it."] if skipped or failed else lines)


if __name__ == "__main__":
    sys.exit(main())
