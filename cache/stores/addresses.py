"""Addresses that are called as pathlib calls paths."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Self

WEB = ("http://", "https://")


def is_web(address: object) -> bool:
    """Whether it is one of a web server, which neither lists what it has nor takes files."""
    return str(address).startswith(WEB)


class Address(ABC):
    """An address, and the names that are made of it.

    root: what has no folder around it, as a bucket; key: the names of folders and file below it.
    """

    def __init__(self, root: str, key: str | None) -> None:
        self._root = root
        self._key = "/".join(part for part in (key or "").split("/") if part)

    @abstractmethod
    def _at(self, key: str) -> Self:
        """Another address below the same root."""

    def __str__(self) -> str:
        return f"{self._root}/{self._key}" if self._key else self._root

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Self) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str | PurePosixPath) -> Self:
        return self._at(f"{self._key}/{name}")

    @property
    def name(self) -> str:
        return self._pure.name

    @property
    def stem(self) -> str:
        return self._pure.stem

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def parent(self) -> Self:
        return self._at(self._key.rpartition("/")[0])

    @property
    def parents(self) -> Sequence[Self]:
        return [self._at("" if str(one) == "." else str(one)) for one in self._pure.parents]

    def relative_to(self, other: Self) -> PurePosixPath:
        return PurePosixPath(str(self)).relative_to(PurePosixPath(str(other)))

    def is_relative_to(self, other: Self) -> bool:
        return PurePosixPath(str(self)).is_relative_to(PurePosixPath(str(other)))

    @property
    def _pure(self) -> PurePosixPath:
        return PurePosixPath(self._key)
