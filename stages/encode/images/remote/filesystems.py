"""Files that libraries of fsspec reach: those of the Hugging Face hub, and any other kind."""

import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import quote

from cache.stores.requests import StoreError
from stages.encode.images.errors import SourceError
from stages.encode.images.remote.requests import (
    REFUSED,
    Entries,
    Status,
    changed_by,
    changed_error,
    rangeless_error,
)

HUB = "hf"
# What tells one content from another, in what libraries say of files, the surest first.
VERSIONS = ("blob_id", "xet_hash", "etag", "ETag", "version_id", "generation", "md5", "sha256")
TIMES = ("mtime", "LastModified", "last_modified", "modified", "timestamp", "modify")
# Attempts, and the first pause between them in seconds.
ATTEMPTS, PAUSE_SECONDS = 6, 0.1
# The hub's library asks again by itself.
HUB_ATTEMPTS = 2
HUB_REFUSED = (
    "Accept them on its page if it is gated, as ImageNet is; `hf auth login` or HF_TOKEN tells who "
    "you are."
)
# What servers answer to those whom they do not know or trust, when they are busy, and, from one
# number on, when they fail.
DENIED, BUSY, FAILURE = frozenset({401, 403}), frozenset({408, 425, 429}), 500
# Of an answer: what is behind is the library's.
TOLD_CHARACTERS = 300

Found = TypeVar("Found")


class FileSystems:
    """File systems by their names, which have to be installed: `hf`, `sftp`, `memory` and so on."""

    def entries(self, address: str) -> Entries:
        """As `Transport.entries`."""

        def listed() -> list[Mapping[str, Any]]:
            files, path = _opened(address)
            found: list[Mapping[str, Any]] = files.ls(path, detail=True)
            # A file is listed as what is in it.
            return [one for one in found if one["name"].strip("/") != path.strip("/")]

        found = _asked(address, listed) or []
        return {one["name"].rstrip("/").rpartition("/")[2]: _status(one) for one in found}

    def status(self, address: str) -> Status | None:
        """As `Transport.status`."""

        def found() -> Status | None:
            files, path = _opened(address)
            return _status(files.info(path))

        return _asked(address, found)

    def read(self, address: str, start: int, count: int, status: Status) -> bytes:
        """As `Transport.read`."""

        def part() -> bytes:
            files, path = _opened(address)
            if _is_hub(address):
                # Neither more than is asked for, nor its size, which is known.
                options = {"cache_type": "none", "size": status.size}
            else:
                options = {}
                if _status(files.info(path)) != status:
                    raise changed_error(address)
            content: bytes = files.cat_file(path, start=start, end=start + count, **options)
            if len(content) > count:
                raise rangeless_error(address)
            if len(content) < count:
                raise EOFError(f"{len(content)} of {count} bytes arrived")
            return content

        found = _asked(address, part)
        if found is None:
            raise FileNotFoundError(f"there is nothing at {address}")
        return found


def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, and what it calls the file."""
    import fsspec

    try:
        if _is_hub(address):
            return _hub_at(address, os.getpid())
        files, path = fsspec.url_to_fs(address)
    except ImportError as error:
        raise SourceError(
            f"what is at such addresses is read by a package that is not installed ({error})",
            where=address,
            remedy="Install it.",
        ) from error
    except ValueError as error:
        raise SourceError(
            f"nothing is known that reads such addresses ({error})",
            where=address,
            remedy="Install the package for them, one that works with fsspec.",
        ) from error
    return files, path


def _hub_at(address: str, process: int) -> tuple[Any, str]:
    """The hub, and a path with the commit that its revision is of when it is first asked for.

    What is at a commit never changes, also if the repository does meanwhile.
    """
    files = _hub(process)
    found = files.resolve_path(address)
    commit = _commit(process, found.repo_type, found.repo_id, found.revision)
    kind = f"{found.repo_type}s/" if found.repo_type != "model" else ""
    path = f"/{found.path_in_repo}" if found.path_in_repo else ""
    return files, f"{kind}{found.repo_id}@{quote(commit, safe='')}{path}"


@lru_cache
def _hub(_process: int) -> Any:
    import fsspec

    return fsspec.filesystem(HUB, skip_instance_cache=True)


@lru_cache
def _commit(_process: int, kind: str, name: str, revision: str) -> str:
    from huggingface_hub import HfApi

    commit: str | None = HfApi().repo_info(name, repo_type=kind, revision=revision).sha
    return commit or revision


def _is_hub(address: str) -> bool:
    return address.startswith(f"{HUB}://")


def _status(found: Mapping[str, Any]) -> Status | None:
    """That of a file, by what a library says of it; None for a folder."""
    if found["type"] == "directory":
        return None
    large = found.get("lfs") or {}
    told = (found.get(name) for name in (*VERSIONS, *TIMES))
    version = large.get("sha256") or next((one for one in told if one), None)
    return Status(found["size"], changed_by(version))


def _asked(address: str, ask: Callable[[], Found]) -> Found | None:
    """What a file system answers, None if there is no such file; asked again if that may help."""
    attempts = HUB_ATTEMPTS if _is_hub(address) else ATTEMPTS
    for attempt in range(1, attempts + 1):
        try:
            return ask()
        except SourceError:
            raise
        except (FileNotFoundError, NotADirectoryError) as error:
            # As what is not there, the hub's library also takes what it may not see.
            if _code(error.__cause__) in DENIED:
                raise _refused(address, error.__cause__) from error
            return None
        except Exception as error:
            if isinstance(error, PermissionError) or _code(error) in DENIED:
                raise _refused(address, error) from error
            if attempt == attempts or not _may_pass(error):
                told = _told(address, error)
                raise SourceError(told, where=address, remedy=StoreError.remedy) from error
        time.sleep(PAUSE_SECONDS * 2**attempt)
    raise AssertionError("unreachable")


def _refused(address: str, error: Any) -> SourceError:
    if _is_hub(address):
        what = "the hub has no such repository, or shows it only to those who accept its terms"
        return SourceError(what, where=address, remedy=HUB_REFUSED)
    return SourceError(_told(address, error), where=address, remedy=REFUSED)


def _told(address: str, error: Exception) -> str:
    """What an error says, without what addresses are signed by."""
    told = StoreError(address, error).what or type(error).__name__
    return told if len(told) <= TOLD_CHARACTERS else f"{told[:TOLD_CHARACTERS]}..."


def _code(error: Any) -> int | None:
    """The number by which a server says why it does not answer, if an error has one."""
    answer = getattr(error, "response", error)
    return getattr(answer, "status_code", None) or getattr(answer, "status", None)


def _may_pass(error: Exception) -> bool:
    """Whether asking again may help: not where the library, or what is asked for, is wrong."""
    code = _code(error)
    if code is not None:
        return code >= FAILURE or code in BUSY
    return not isinstance(error, ValueError | TypeError | LookupError | NotImplementedError)
