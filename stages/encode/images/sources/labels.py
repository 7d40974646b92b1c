"""Numbered labels, and the `dataset.json` of EDM2 and REPA that gives them."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from stages.encode.images.sources.left_out import OTHER, LeftOut
from stages.encode.images.sources.names import candidates, member_name
from stages.encode.images.sources.source import Labels, SourceError, is_image

DATASET_JSON = "dataset.json"
# Twelve million images: the largest that is parsed at once.
MAX_JSON_BYTES = 512 << 20
# Beyond any labelled data set (ImageNet-21k has 21 841): what is larger is no class.
MAX_CLASSES = 100_000


def numbered(labels: Sequence[int], where: object) -> tuple[Labels, tuple[str, ...]]:
    """Labels, and the classes 0 to the largest, whose names are their numbers."""
    least, largest = min(labels), max(labels)
    if least < 0:
        raise SourceError(f"{where}: label {least}: images without a class cannot be used.")
    if largest >= MAX_CLASSES:
        raise SourceError(f"{where}: label {largest}: more than {MAX_CLASSES} classes.")
    return np.array(labels, np.int32), tuple(map(str, range(largest + 1)))


def parse_labels(content: bytes, where: object) -> dict[str, int]:
    """The label of each file that a `dataset.json` names."""
    if len(content) > MAX_JSON_BYTES:
        raise SourceError(f"{where}: larger than {MAX_JSON_BYTES >> 20} MB.")
    try:
        entries = json.loads(content)["labels"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(f'{where}: no {{"labels": [[name, label], ...]}}: {error!r}.') from None
    if entries is None:
        raise SourceError(
            "labels are null: the images have no classes, but training needs them",
            where=where,
            remedy="Give all of them label 0 for a single class.",
        )
    labels: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case [str(name), int(label)] if not isinstance(label, bool):
                if labels.setdefault(member_name(name, where), label) != label:
                    raise SourceError(f"{where}: two labels for {name!r}.")
            case _:
                raise SourceError(f"{where}: expected [name, label] with a number, got {entry!r}.")
    return labels


def labelled_images(
    names: Sequence[str], labels: Mapping[str, int], where: object, left_out: LeftOut
) -> tuple[list[int], Labels, tuple[str, ...]]:
    """Positions of the images among `names`, sorted by name, labels and classes.

    Raises SourceError unless images and labels are of each other.
    """
    order = []
    for i in candidates(names, left_out):
        if is_image(names[i]):
            order.append(i)
        elif not names[i].endswith("/") and names[i] != DATASET_JSON:
            left_out.add(OTHER, names[i])
    order.sort(key=names.__getitem__)
    images = [names[i] for i in order]
    if lacking := set(images).symmetric_difference(labels):
        name = min(lacking)
        what = "no such image" if name in labels else "no label"
        raise SourceError(f"{where}: {what} for {name!r}, and {len(lacking) - 1} more like it.")
    if not images:
        raise SourceError(f"{where}: no images.")
    return order, *numbered([labels[name] for name in images], where)
