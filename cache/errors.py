"""Errors that a user can act on: what is wrong, where, and what to do about it.

One class per decision a caller can take. The command line shows the message without a
traceback.
"""


class RepaCacheError(Exception):
    """Base class: the message is meant for the user.

    what: what is wrong; where: the file, column or setting that it is about; remedy: what to do
    about it, in whole sentences, "" if what is wrong tells.
    """

    remedy = ""

    def __init__(self, what: str, *, where: object = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        if remedy is not None:
            self.remedy = remedy

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return f"{text}. {self.remedy}" if self.remedy else text


class NotACacheError(RepaCacheError):
    """The folder is no cache, or one of another format version."""


class StaleCacheError(RepaCacheError):
    """A column was built by another recipe than the one asked for."""


class IncompleteCacheError(RepaCacheError):
    """A column is missing, or some of its shards are."""


class DamagedCacheError(RepaCacheError):
    """Bytes of the cache are not those that were written."""

    remedy = "Run `repa-cache build --repair`."


class CacheReplacedError(RepaCacheError):
    """What is being read was made anew meanwhile, and has to be opened again."""

    remedy = "Start again."


class RowsChangedError(RepaCacheError):
    """The data set is not the one the cache was built from."""


class CacheBusyError(RepaCacheError):
    """Another build is at work on the cache."""


class CacheReadError(RepaCacheError):
    """The disk did not deliver rows, or not in time."""


class CacheWriteError(RepaCacheError):
    """Rows cannot be written: no space, no permission, or values that no type can hold."""


class CopyError(RepaCacheError):
    """One place is not to be copied to the other: it holds something else, or cannot be listed."""


class LockError(RepaCacheError):
    """A file system or store has no locks: two processes could do the same work at once."""
