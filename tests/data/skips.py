"""What a reader of raw data may call for parts that it leaves out."""

from __future__ import annotations


def no_skip(item: str, reason: str) -> None:
    raise AssertionError(f"{item} was skipped: {reason}")


class Skips(dict[str, str]):
    """Item -> reason."""

    def __call__(self, item: str, reason: str) -> None:
        self[item] = reason
