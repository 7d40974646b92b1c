"""Which text models there are by a name, and how kinds of them read captions.

Neither torch nor transformers is imported. Every text model of transformers is found by its folder
or its name on the hub; a kind that reads otherwise than most is added by a line in `KINDS`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from zipfile import ZipFile

from stages.encode.networks.registry import EncoderError
from stages.encode.networks.transformers_index import CONFIG, model_folder, read_json
from stages.packages import is_installed, needs

# Most captions have 10 to 20 tokens; as PixArt-alpha cuts those of T5.
MAX_TOKENS = 120
# Names of sections that need no `model`.
TEXT_MODELS = {
    "clip-vit-L": "openai/clip-vit-large-patch14",
    "clip-vit-H-dfn": "apple/DFN5B-CLIP-ViT-H-14",
    "siglip-so400m": "google/siglip-so400m-patch14-384",
    "t5-v1_1-base": "google/t5-v1_1-base",
    "t5-v1_1-xxl": "google/t5-v1_1-xxl",
    "gemma-2-2b": "google/gemma-2-2b",
    "all-minilm-l6-v2": "all-minilm-l6-v2",
}
# Of those what a plan wants to know, where they cannot be had.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "openai/clip-vit-large-patch14": {
        "model_type": "clip",
        "text_config": {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 77,
        },
    },
    "google/t5-v1_1-base": {
        "model_type": "t5",
        "d_model": 768,
        "num_layers": 12,
        "d_ff": 2048,
        "feed_forward_proj": "gated-gelu",
    },
    "google/t5-v1_1-xxl": {
        "model_type": "t5",
        "d_model": 4096,
        "num_layers": 24,
        "d_ff": 10240,
        "feed_forward_proj": "gated-gelu",
    },
    "all-minilm-l6-v2": {
        "model_type": "bert",
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "intermediate_size": 1536,
        "max_position_embeddings": 512,
    },
}
# Installed packages that hold a model's files in an archive: as imported, and the archive's name.
PACKAGED = {"all-minilm-l6-v2": ("all_minilm_l6_v2", "model.zip")}


@dataclass(frozen=True)
class Kind:
    """How a kind of text model reads captions.

    network: the class of transformers that has the text encoder alone; reads: the part of the
    configuration that is its own, in one of images and texts; padding: see `TextSettings`;
    max_tokens: None for what the configuration says.
    """

    network: str = "AutoModel"
    reads: str | None = None
    padding: Literal["seen", "masked"] = "masked"
    max_tokens: int | None = MAX_TOKENS


CLIP = Kind("CLIPTextModel", "text_config", "seen", None)
SIGLIP = Kind("SiglipTextModel", "text_config", "seen", None)
# By `model_type`.
KINDS = {
    "clip": CLIP,
    "clip_text_model": CLIP,
    "siglip": SIGLIP,
    "siglip_text_model": SIGLIP,
    "t5": Kind("T5EncoderModel"),
    "mt5": Kind("MT5EncoderModel"),
    "umt5": Kind("UMT5EncoderModel"),
}


def kind_of(config: dict[str, Any]) -> Kind:
    """How the model of a configuration reads captions."""
    return KINDS.get(str(config.get("model_type")), Kind())


def longest(config: dict[str, Any], kind: Kind) -> int:
    """The most tokens that a model reads, as far as it has a limit, else what is usual."""
    own = config.get(kind.reads, config) if kind.reads else config
    limit = own.get("max_position_embeddings")
    usual = kind.max_tokens or limit or MAX_TOKENS
    return min(usual, limit) if limit else usual


def package_of(location: str) -> str | None:
    """The package that a model comes from, as it is imported, if it comes from one."""
    return PACKAGED[location][0] if location in PACKAGED else None


def known_config(location: str) -> dict[str, Any]:
    """The configuration of a model: from its folder or the hub's cache, or as it is known to be.

    Raises EncoderError if none of them has it.
    """
    name = TEXT_MODELS.get(location, location)
    try:
        if name in PACKAGED:
            with unpacked(name) as folder:
                return read_json(folder, CONFIG)
        return read_json(model_folder(name, CONFIG), CONFIG)
    except EncoderError:
        if name not in PUBLISHED:
            raise
        return dict(PUBLISHED[name])


@contextmanager
def unpacked(location: str) -> Iterator[Path]:
    """The folder with the files of a model that comes from a package, while the block lasts."""
    package, archive = PACKAGED[location]
    if not is_installed(package):
        raise EncoderError(f"texts.{location}: {needs(package)}")
    # Not imported, as it would speak up.
    spec = find_spec(package)
    assert spec is not None, "it is installed"
    assert spec.origin is not None, "it has an __init__.py"
    with TemporaryDirectory() as folder:
        with ZipFile(Path(spec.origin).with_name(archive)) as content:
            content.extractall(folder)
        # Others lie deeper, of parts that make no token.
        config = min(Path(folder).rglob("config.json"), key=lambda path: len(path.parts))
        yield config.parent
