"""Files of the Hugging Face hub: those that are here, and what is to be done about the others.

Its library tries again and again, for minutes, before it says that it found nothing; here the hub
is asked once.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)

from cache.errors import RepaCacheError

HUB = "https://huggingface.co"
SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".npz"}


class HubError(RepaCacheError):
    """A file is not here, and cannot be had from the hub.

    urls: where it may be had by other means.
    """

    def __init__(self, message: str, urls: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.urls = tuple(urls)

    def told(self, advice: str) -> str:
        """What happened; of a hub that is out of reach also what to do about which files."""
        return "\n  ".join([f"{self}. {advice}:", *self.urls]) if self.urls else f"{self}."


def fetch(repo: str, *files: Sequence[str], beside: Sequence[str] = ()) -> Path:
    """The folder with files of a repository, downloaded if they are not here.

    files: names of each, of which one is enough, the better one first; beside: of others, which
    come along where there are such. Raises HubError.
    """
    try:
        lacking = [names[0] for names in files if not any(_is_here(repo, name) for name in names)]
    except HFValidationError as error:
        raise HubError(f"{repo!r} is neither a folder nor a name on the hub ({error})") from error
    if lacking:
        require_hub(repo, lacking)
        for name in beside:
            with suppress(HubError):
                _download(repo, [name])
    for names in files:
        folder = _download(repo, names).parent
    return folder


def has_weights(repo: str) -> bool:
    """Whether any file of weights of a repository is here."""
    snapshots = _cache_folder(repo) / "snapshots"
    return any(path.suffix in SUFFIXES and path.exists() for path in snapshots.glob("*/*"))


def require_hub(repo: str, lacking: Sequence[str]) -> None:
    """Raise HubError if the hub cannot be reached, or has no such repository.

    lacking: the files that are wanted, for the message.
    """
    try:
        get_hf_file_metadata(hf_hub_url(repo, lacking[0]), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RepositoryNotFoundError as error:
        raise HubError(
            f"the hub has no {repo}, or shows it only to those whom its authors let in: see "
            f"{HUB}/{repo}, and log in with `hf auth login`"
        ) from error
    except HfHubHTTPError:
        # It answers: what it has to say will be told by the attempt.
        return
    except Exception as error:  # of the library's HTTP client, which changes with its version
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _first_line(error)
        raise HubError(
            f"the Hugging Face hub could not be reached ({reason}), and there is no "
            f"{' and no '.join(lacking)} in {_cache_folder(repo)}",
            [hf_hub_url(repo, name, endpoint=HUB) for name in lacking],
        ) from error


def _is_here(repo: str, name: str) -> bool:
    return isinstance(try_to_load_from_cache(repo, name), str)


def _cache_folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def _download(repo: str, names: Sequence[str]) -> Path:
    for name in names:
        try:
            return Path(hf_hub_download(repo, name))
        except EntryNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise HubError(
                f"{name} of {repo} cannot be downloaded: {_first_line(error)}"
            ) from error
    raise HubError(f"{repo} has no {' and no '.join(names)}, on the hub or in its cache")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
