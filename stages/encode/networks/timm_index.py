"""What timm's models are, known without importing timm, which takes seconds.

It is asked once, and its answers are kept in the user's cache folder for the next command:

    ~/.cache/repa-cache/timm-VERSION/names.json            the names of all models
    ~/.cache/repa-cache/timm-VERSION/PROGRAM/NAME.json     what a model gives that was asked for

PROGRAM is a digest of the code that asks. What cannot be written there, or not be read, is asked
anew.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from cache.files import write_atomically
from stages.encode.networks.registry import ENCODERS, Channels, EncoderError, EncoderSpec, Sizing

T = TypeVar("T")

# How timm writes names; those of the registry all have something else in them.
TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


class _Answer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class TimmNames(_Answer):
    """All models. published: those with weights, by the names of these."""

    published: tuple[str, ...]
    others: tuple[str, ...]


class TimmModel(_Answer):
    """What is known of a model; the fields are those of `EncoderSpec`."""

    stride: int
    input_size: int
    mean: Channels
    std: Channels
    has_class_token: bool
    sizing: Sizing
    has_weights: bool


class Unusable(_Answer):
    """Why a model cannot be an encoder."""

    problem: str


NAMES = TypeAdapter(TimmNames)
MODEL: TypeAdapter[TimmModel | Unusable] = TypeAdapter(TimmModel | Unusable)


@cache
def timm_encoder(name: str) -> EncoderSpec:
    """The encoder that timm calls so, at the input size of its published weights.

    Raises EncoderError if timm knows no such model, or if it gives no square grid of features.
    """
    if not TIMM_NAME.fullmatch(name):
        raise _unknown(name, _read(_names_path(), NAMES))
    names = _kept(_names_path(), NAMES, lambda: _timm().model_names())
    if name not in names.published and name not in names.others:
        raise _unknown(name, names)
    model = _kept(_model_path(name), MODEL, lambda: _timm().probe_model(name))
    if isinstance(model, Unusable):
        raise EncoderError(f"{name} {model.problem}")
    facts = model.model_dump(exclude={"has_weights"})
    unpublished = None if model.has_weights else f"timm publishes no weights of {name}"
    return EncoderSpec(name, order="resize, normalise", unpublished=unpublished, **facts)


def _unknown(name: str, names: TimmNames | None) -> EncoderError:
    close = difflib.get_close_matches(
        name, [*ENCODERS, *(names.published if names else ())], n=1, cutoff=0.5
    )
    known = f"choose from {', '.join(ENCODERS)}, or a model of timm"
    hint = f"did you mean {close[0]!r}?" if close else known
    return EncoderError(f"unknown name {name!r}; {hint}")


def _timm() -> Any:
    """The module that asks timm."""
    return import_module("stages.encode.networks.timm_library")


def _kept(path: Path | None, kind: TypeAdapter[T], ask: Callable[[], T]) -> T:
    """An answer that was kept in a file, or else a new one, which is kept if it can be."""
    if (known := _read(path, kind)) is not None:
        return known
    answer = ask()
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, kind.dump_json(answer))
    return answer


def _read(path: Path | None, kind: TypeAdapter[T]) -> T | None:
    with suppress(OSError, ValueError):
        return None if path is None else kind.validate_json(path.read_bytes())
    return None


def _names_path() -> Path | None:
    """Where the names are kept, if the user has a folder for that."""
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = given if given.is_absolute() else Path(os.path.expanduser("~/.cache"))  # noqa: PTH111
    if not folder.is_absolute():
        return None
    return folder / "repa-cache" / f"timm-{version('timm')}" / "names.json"


def _model_path(name: str) -> Path | None:
    names = _names_path()
    if names is None:
        return None
    asking = ("timm_index", "timm_library", "registry")
    code = b"".join(Path(__file__).with_name(f"{file}.py").read_bytes() for file in asking)
    program = hashlib.sha256(version("torch").encode() + code).hexdigest()[:16]
    return names.parent / program / f"{name}.json"
