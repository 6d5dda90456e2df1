"""`python -m ponder_zoo.report RUN_DIR`: make the report of a run again, from what its folder holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .html import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ponder_zoo.report", description=__doc__)
    parser.add_argument("run_dir", help="folder of a run, finished or not")
    parser.add_argument("--output", help="file to write (default: RUN_DIR/report.html)")
    parser.add_argument("--title", default="", help="heading of the page")
    options = parser.parse_args(arguments)
    try:
        path = write_report(options.run_dir, title=options.title, path=options.output)
    except (OSError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
