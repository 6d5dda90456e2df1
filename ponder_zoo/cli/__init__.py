"""The command line, `ponder-zoo COMMAND`. Modules here import what is heavy inside their commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..version import __version__
from . import features, render, weights, zoo

EXPECTED = (ValueError, TypeError, OSError, ImportError, RuntimeError)  # what the library raises for a user to read


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it succeeded; 1 if it could not be done, or the answer is no (`verify`, `doctor`, an empty `list`). A wrong
        command line ends with status 2, as argparse does it.

    Example:
        >>> main(["list", "tiny", "--modality", "points"])  # doctest: +SKIP
        0
    """
    options = build_parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `ponder-zoo list | head`
        sys.stdout = None  # type: ignore[assignment]  # nobody is left to flush to
        return 0
    except EXPECTED as error:
        if options.traceback:
            raise
        sys.stderr.write(f"ponder-zoo {options.command}: {error or type(error).__name__}\n")
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the parsed options that returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="ponder-zoo",
        description="3D encoders that learn by rendering: look at the zoo, use it on a scan, publish to it.",
        epilog="`ponder-zoo COMMAND --help` has the options and an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"ponder_zoo {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (zoo, features, render, weights):
        module.add_commands(commands)
    return parser
