"""The files of a data set that is kept in tables, and which of them are of one split."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath

from stages.encode.images.remote.paths import DataPath, RemotePath
from stages.encode.images.sources.archives import Archive, locate, means_several
from stages.encode.images.sources.source import SourceError
from stages.progress import say

# NAME-00003-of-00010, with a hash behind it in some data sets.
SHARD = re.compile(r"(?P<name>.*?)[-_.]?(?P<number>\d+)-of-(?P<total>\d+)(?:-[0-9a-f]+)?")
KEYWORD = re.compile(r"(?<![a-z])(train|val|test)[a-z]*", re.IGNORECASE)
# Names that only number files, so that their folder is called like the split.
PLAIN = re.compile(r"(?:data|part|shard|chunk|file)?[-_.]?\d*", re.IGNORECASE)
# What `datasets` keeps beside its files: indices, and results that were not asked for.
CACHED_BY_DATASETS = re.compile(r"cache-\w+\.arrow")
NAMED = 5


def table_files(path: DataPath | None, suffix: str, split: str | None) -> list[Archive]:
    """The files of one split, sorted by name: a file, those of a pattern, or those in a folder.

    split: the one that is wanted, where there are several; those of a folder are the files in it,
    or else those in the folders below. Hidden ones are passed over. Raises SourceError if there
    are none, or if they are not of one data set and split.
    """
    if path is None or not means_several(path):
        archive = locate(path)[0]
        _of_split({archive.path: split_of(PurePath(archive.path.name))}, path, split)
        return [archive]
    if path.is_dir():
        files = _below(path, suffix)
        splits = {file: split_of(_below_folder(file, path)) for file in files}
        chosen = _of_split(splits, path, split)
        _check_shards(chosen, path)
    else:
        files = [
            file
            for file in sorted(path.parent.glob(path.name), key=_pure)
            if not _is_hidden(file.name)
        ]
        _check_any(files, path, suffix)
        # A pattern is a choice of its own: it may join what only begins with the same word.
        words = {file: KEYWORD.search(file.name) for file in files}
        chosen = _of_split({file: word and word[0] for file, word in words.items()}, path, split)
    return [Archive.at(file) for file in chosen]


def folder_of(path: DataPath | None) -> DataPath:
    """The folder of the data set at a path, which may be that of a file or a pattern."""
    path = path or Path()
    return path if path.is_dir() else path.parent


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _below(folder: DataPath, suffix: str) -> list[DataPath]:
    """The files in a folder, or else those in the folders below it."""
    found = [file for file in sorted(_walk(folder), key=_pure) if file.name.endswith(suffix)]
    cached = [file for file in found if CACHED_BY_DATASETS.fullmatch(file.name)]
    found = [file for file in found if not CACHED_BY_DATASETS.fullmatch(file.name)]
    direct = [file for file in found if file.parent == folder]
    deeper = [file for file in found if file.parent != folder] if direct else []
    say_unread(cached, folder, "what `datasets` keeps for itself")
    say_unread(deeper, folder, "in folders below")
    files = direct or found
    _check_any(files, folder, suffix)
    return files


def _walk(folder: DataPath) -> Iterator[DataPath]:
    """All files below a folder that are not hidden; links are followed, but not in circles."""
    if isinstance(folder, RemotePath):
        yield from folder.walk_files(lambda name: not _is_hidden(name))
        return
    seen: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = (
            [] if real in seen else sorted(name for name in folders if not _is_hidden(name))
        )
        if real not in seen:
            yield from (Path(parent, name) for name in files if not _is_hidden(name))
        seen.add(real)


def say_unread(files: Sequence[DataPath], path: DataPath | None, why: str) -> None:
    """Say which files are not read."""
    folder = folder_of(path)
    if files:
        say(f"{folder}: passed over, {why}: {listed([_name(file, folder) for file in files])}.")


def listed(names: Sequence[str]) -> str:
    """The first of some names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _name(file: DataPath, folder: DataPath) -> str:
    is_below = _pure(file).is_relative_to(_pure(folder))
    return _below_folder(file, folder).as_posix() if is_below else str(file)


def _pure(path: DataPath) -> PurePath:
    return PurePath(str(path))


def _below_folder(file: DataPath, folder: DataPath) -> PurePath:
    return _pure(file).relative_to(_pure(folder))


def _check_any(files: Sequence[DataPath], path: DataPath, suffix: str) -> None:
    if files:
        return
    folder = folder_of(path)
    others = (("parquet", ".parquet"), ("arrow", ".arrow"), ("tar", ".tar"))
    present = {file.suffix for file in _walk(folder)} if folder.is_dir() else set()
    hint = next(
        (f' Did you mean source = "{n}"?' for n, s in others if s in present - {suffix}), ""
    )
    raise SourceError(
        f"dataset.path: no {suffix} files at {path}; compressed ones are not read.{hint}"
    )


def split_of(file: PurePath) -> str | None:
    """The split that a file is of, as its name or the folders that it is in tell.

    `train-00000-of-00010`, `NAME-train`, `train/0000` and `train/data-00000-of-00010` are of
    `train`; what numbers files of no known word, or folders of those, is a split called so.
    """
    shard = SHARD.fullmatch(file.stem)
    name = shard["name"] if shard else file.stem
    if PLAIN.fullmatch(name):
        folder = file.parent.name
        return None if PLAIN.fullmatch(folder) else _called(folder)
    if shard:
        return _called(name)
    words = (KEYWORD.search(part) for part in (name, *reversed(file.parent.parts)))
    return next((word[0] for word in words if word), None)


def _called(name: str) -> str:
    """The word at the end of a name that is a usual one for splits, or else the name."""
    words = list(KEYWORD.finditer(name))
    return words[-1][0] if words and words[-1].end() == len(name) else name


def _kind(split: str | None) -> str | None:
    """The same for `val`, `valid` and `validation`, and so on."""
    word = KEYWORD.fullmatch(split or "")
    return word[1].lower() if word else split


def _of_split(
    splits: Mapping[DataPath, str | None], path: object, wanted: str | None
) -> list[DataPath]:
    """The files of the split that is wanted, or of the only one."""
    named = sorted(
        {split for split in splits.values() if split is not None},
        key=lambda split: (_kind(split) != "train", split),
    )
    if wanted is None:
        if len({_kind(split) for split in splits.values()}) <= 1:
            return list(splits)
        others = [file.name for file, split in splits.items() if split is None]
        unnamed = f"; of none: {listed(others)}" if others else ""
        raise SourceError(
            f"dataset.path: the files at {path} are of several splits: {', '.join(named)}"
            f'{unnamed}. Choose one, dataset.split = "{named[0]}", or name files by a pattern.'
        )
    exact = [file for file, split in splits.items() if split == wanted]
    alike = [file for file, split in splits.items() if split and _kind(split) == _kind(wanted)]
    if not (exact or alike):
        there = f"There are {', '.join(named)}" if named else "Their names tell of no split"
        raise SourceError(f"dataset.split: no files of {wanted!r} at {path}. {there}.")
    return exact or alike


def _check_shards(files: Sequence[DataPath], folder: DataPath) -> None:
    """Raise SourceError if the numbers of files show that they are not of one data set."""
    numbers: dict[tuple[str, int], DataPath] = {}
    totals: dict[int, DataPath] = {}
    for file in files:
        shard = SHARD.fullmatch(file.stem)
        name, number = (shard["name"], int(shard["number"])) if shard else (file.name, 0)
        other = numbers.setdefault((name, number), file)
        if shard:
            totals.setdefault(int(shard["total"]), file)
        if other != file:
            raise SourceError(
                f"{_name(other, folder)} and {_name(file, folder)} in {folder} have the same "
                "number: they are of two data sets, or of two versions of one",
                where="dataset.path",
                remedy="Name the folder of one, or move the other away.",
            )
    if len(totals) == 1 and len(files) < (total := next(iter(totals))):
        say(f"{folder}: only {len(files)} of {total} files are there.")
