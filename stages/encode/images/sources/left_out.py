"""What lies in a data set and is none of its images: counted by reason, the first ones named."""

from collections import Counter

# Names shown for each reason.
NAMED = 3

HIDDEN = "hidden"
SYSTEM = "of the operating system"
OURS = "of a cache or run"
OTHER = "without an image's suffix"
LOOSE = "in no class folder"
LEADS_BACK = "linked back to a folder around it"
LEADS_NOWHERE = "linked to nowhere"
BESIDE_IMAGE = "beside a sample's image"
EMPTY = "without images"
BESIDE_TARS = "beside the tars"


class LeftOut:
    """Files, and whole folders, that are left out. None counts twice."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[str]] = {}
        self._folders: dict[str, set[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Leave out a file, or a folder with all that is in it, whose name has a slash behind."""
        if name.endswith("/"):
            folders = self._folders.setdefault(reason, set())
            if name in folders:
                return
            folders.add(name)
        self.counts[reason] += 1
        first = self.first.setdefault(reason, [])
        if len(first) < NAMED:
            first.append(name)

    def join(self, other: "LeftOut", prefix: str) -> None:
        """Leave out what a part of the data set leaves out, whose names begin with `prefix`."""
        self.counts.update(other.counts)
        for reason, names in other.first.items():
            first = self.first.setdefault(reason, [])
            first += [f"{prefix}{name}" for name in names[: NAMED - len(first)]]
            folders = self._folders.setdefault(reason, set())
            folders.update(f"{prefix}{name}" for name in other.folders(reason))

    def folders(self, reason: str) -> frozenset[str]:
        """The folders that are left out for a reason."""
        return frozenset(self._folders.get(reason, ()))

    @property
    def total(self) -> int:
        """Number of files and folders."""
        return self.counts.total()

    def __str__(self) -> str:
        """How many are left out for each reason, and the first of them; most first."""
        return "; ".join(
            f"{count:,} {reason} ({self._named(reason)})"
            for reason, count in self.counts.most_common()
        )

    def _named(self, reason: str) -> str:
        names = ", ".join(map(printable, self.first[reason]))
        return f"{names}, ..." if self.counts[reason] > len(self.first[reason]) else names


def printable(name: str) -> str:
    """A name that any terminal takes, also if it is no text."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
