"""What the cached encoders are like, to choose one before training.

N images, D features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cache.layout import FEATURES
from cache.order import evenly
from cache.reader import Cache
from cache.stores.places import Place
from stages.analyze.analysis_options import AlignmentOptions, ProbeOptions
from stages.analyze.neighbours import cknna, pooled_neighbours
from stages.analyze.probe import Accuracy, Prober
from stages.analyze.subject import check_has_encoders, find_encoders, spread_rows
from stages.analyze.tokens import Structure, class_tokens, mean_tokens, measure_structure

# Means over this many images are sharp; reading their tokens is what takes time.
STRUCTURE_ROWS = 1_000


@dataclass(frozen=True)
class EncoderScores:
    """What is known of a cached encoder.

    tokens, features: of an image; storage: how tokens are kept; row_bytes: of an image on disk;
    mean_token, class_token: accuracies of probes, if there are any.
    """

    name: str
    tokens: int
    features: int
    storage: str
    row_bytes: int
    structure: Structure
    mean_token: Accuracy | None
    class_token: Accuracy | None


@dataclass(frozen=True)
class EncoderComparison:
    """The encoders of a cache, those of most spatial structure first.

    cknna: between the mean tokens of any two, by their names; images: that were looked at;
    classes: of these; trained: images that probes were trained on, none without probes.
    """

    path: Place
    encoders: list[EncoderScores]
    cknna: Mapping[tuple[str, str], float]
    images: int
    classes: int
    trained: int


def compare_encoders(
    path: Place, wanted: tuple[str, ...], rows: int, how: ProbeOptions | None, device: torch.device
) -> EncoderComparison:
    """Measure the encoders of the cache at `path`.

    wanted: their names, none for all; how: to probe them, None to leave that out, which takes
    most of the time. In memory are a vector per image and encoder. Raises AnalysisError if the
    cache has no encoder.
    """
    names = find_encoders(path, wanted)
    check_has_encoders(path, names)
    cache = Cache(path)
    readers = {name: cache.column(FEATURES + name) for name in names}
    chosen = spread_rows(list(readers.values()), rows)
    classes = len(cache.rows.classes)
    prober = Prober(cache.rows.label[chosen], classes, how, device) if how else None
    pooled = {name: mean_tokens(reader, chosen).to(device) for name, reader in readers.items()}
    few = evenly(chosen, STRUCTURE_ROWS)
    structures = {name: measure_structure(reader, few, device) for name, reader in readers.items()}
    scores = []
    for name, reader in readers.items():
        mean = classified = None
        if prober is not None:
            mean = prober.accuracy(f"probe of {name}, mean token", pooled[name])
            if (tokens := class_tokens(reader, chosen)) is not None:
                classified = prober.accuracy(f"probe of {name}, class token", tokens)
        tokens_per_image, features = reader.column.array("tokens").row_shape
        scores.append(
            EncoderScores(
                name=name,
                tokens=tokens_per_image,
                features=features,
                storage=str(reader.column.recipe["storage"]),
                row_bytes=reader.column.row_bytes,
                structure=structures[name],
                mean_token=mean,
                class_token=classified,
            )
        )
    scores.sort(key=lambda one: -one.structure.lds)
    trained = len(prober.split.trained) if prober else 0
    near = {name: pooled_neighbours(means, AlignmentOptions()) for name, means in pooled.items()}
    pairs = {(one, other): cknna(near[one], near[other]) for one in near for other in near}
    return EncoderComparison(path, scores, pairs, len(chosen), classes, trained)
