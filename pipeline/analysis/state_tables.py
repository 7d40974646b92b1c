"""What analyses of hidden states have found: for a page, a CSV file and the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from stages.analyze.analysis_options import HIDDEN_STATES
from stages.analyze.hidden_states import AlignmentScores, ProbeScores
from stages.analyze.probe import Accuracy
from stages.analyze.subject import Subject
from stages.train.train_settings import TrainSettings

# Below this, a probe's accuracy says more about the number of images than about the features.
ENOUGH_PER_CLASS = 20
# Above this, classes are too easy to tell features apart.
TOO_EASY = 0.995

Row = Sequence[str]

ACCURACY_COLUMNS = ("top1", "top1_error", "top5", "top5_error", "held_out")


def accuracy_values(one: Accuracy | None) -> tuple[object, ...]:
    """The values of ACCURACY_COLUMNS, empty for what there is not."""
    if one is None:
        return ("",) * len(ACCURACY_COLUMNS)
    five = ("", "") if one.top5 is None else (f"{one.top5:.6f}", f"{one.error(one.top5):.6f}")
    return (f"{one.top1:.6f}", f"{one.error(one.top1):.6f}", *five, one.images)


@dataclass(frozen=True)
class Table:
    """A table of a page: the first column names the rows."""

    title: str
    head: Row
    rows: Sequence[Row]


@dataclass(frozen=True)
class Findings:
    """The page of an analysis, and the columns and values of its CSV file."""

    title: str
    lead: str
    notes: tuple[str, ...]
    caption: str
    tables: Sequence[Table]
    facts: dict[str, str]
    columns: Row
    values: Sequence[Sequence[object]]


def alignment_findings(found: AlignmentScores) -> Findings:
    """Of CKNNA by block and noise."""
    subject, aligned = found.subject, found.subject.settings.encoders
    levels, k, images = subject.options.levels, found.options.neighbours, len(subject.rows)
    return Findings(
        title=f"CKNNA of {subject.run.name}, {subject.title}",
        lead=(
            "How alike a block's hidden states and an encoder's features order the nearest "
            f"neighbours of each of {images:,} images. 1 is for the same features; independent "
            f"ones have about k / images = {k / images:.2g}, and more if both tell classes apart."
        ),
        notes=subject.notes,
        caption=f"CKNNA by block and level of noise.{_framed(subject)}",
        tables=[
            Table(
                encoder,
                ("block", *(f"noise {level:g}" for level in levels)),
                [
                    (str(block), *(f"{value:.3f}" for value in row))
                    for block, row in zip(subject.blocks, scores, strict=True)
                ],
            )
            for encoder, scores in found.scores.items()
        ],
        facts={
            **state_facts(subject),
            "neighbours": f"k = {k}",
            "features": "as they are" if found.options.is_raw else "at unit length",
        },
        columns=("encoder", "aligned_with", "block", "noise", "cknna", "images"),
        values=[
            (encoder, int(encoder in aligned), block, level, f"{value:.6f}", images)
            for encoder, scores in found.scores.items()
            for block, row in zip(subject.blocks, scores, strict=True)
            for level, value in zip(levels, row, strict=True)
        ],
    )


def alignment_summary(found: AlignmentScores) -> tuple[Row, list[Row]]:
    """A line for each encoder: where it is nearest, and how near at the aligned block."""
    subject = found.subject
    rows: list[Row] = []
    for encoder, scores in found.scores.items():
        block, level = np.unravel_index(scores.argmax(), scores.shape)
        aligned = "; ".join(
            f"block {depth}: {scores[subject.blocks.index(depth)].mean():.3f}"
            for depth in subject.settings.depths(encoder)
            if depth in subject.blocks
        )
        place = f"block {subject.blocks[block]}, noise {subject.options.levels[level]:g}"
        rows.append((encoder, f"{scores.max():.3f}", place, aligned))
    return ("encoder", "highest CKNNA", "there", "where aligned, mean over noise"), rows


def probe_findings(found: ProbeScores) -> Findings:
    """Of probes by block and noise."""
    subject, levels = found.subject, found.subject.options.levels
    return Findings(
        title=f"Linear probes of {subject.run.name}, {subject.title}",
        lead=(
            "How much of an image's class a linear layer finds in a block's hidden states, "
            f"mean-pooled: the share of {found.held_out:,} held-out images of {found.classes} "
            f"classes that it names. Chance is {1 / found.classes:.1%}."
        ),
        notes=(
            *subject.notes,
            *_told(subject),
            *few_images(found.trained, found.classes),
            *easy([one for name, one in found.references.items() if "token" in name]),
        ),
        caption=(
            "Top-1 accuracy by block; shades are standard errors, dashed lines what is cached."
            f"{_framed(subject)}"
        ),
        tables=[
            Table(
                "Hidden states: top-1 accuracy",
                ("block", *(f"noise {level:g}" for level in levels)),
                [
                    (str(block), *map(share, row))
                    for block, row in zip(subject.blocks, found.hidden, strict=True)
                ],
            ),
            Table(
                "References: what is cached",
                ("features", "top-1", "top-5"),
                [(name, share(one), _top_five(one)) for name, one in found.references.items()],
            ),
        ],
        facts={
            **state_facts(subject),
            "probes": f"trained on {found.trained:,} images, judged by {found.held_out:,} others",
        },
        columns=("features", "block", "noise", *ACCURACY_COLUMNS),
        values=[
            *(
                (HIDDEN_STATES, block, level, *accuracy_values(one))
                for block, row in zip(subject.blocks, found.hidden, strict=True)
                for level, one in zip(levels, row, strict=True)
            ),
            *((name, "", "", *accuracy_values(one)) for name, one in found.references.items()),
        ],
    )


def probe_summary(found: ProbeScores) -> tuple[Row, list[Row]]:
    """A line for each level of noise, with its best block, and for each reference."""
    rows: list[Row] = []
    for column, level in enumerate(found.subject.options.levels):
        accuracies = [row[column] for row in found.hidden]
        best = max(range(len(accuracies)), key=lambda block: accuracies[block].top1)
        where = f"hidden states at noise {level:g}: best is block {found.subject.blocks[best]}"
        rows.append((where, share(accuracies[best]), _top_five(accuracies[best])))
    rows += [(name, share(one), _top_five(one)) for name, one in found.references.items()]
    return ("features", "top-1", "top-5"), rows


def share(one: Accuracy) -> str:
    """Top-1 accuracy with its standard error."""
    return f"{one.top1:.1%} ± {one.error(one.top1):.1%}"


def _top_five(one: Accuracy) -> str:
    return "" if one.top5 is None else f"{one.top5:.1%} ± {one.error(one.top5):.1%}"


def state_facts(subject: Subject) -> dict[str, str]:
    """What a run's weights were given."""
    settings, options = subject.settings, subject.options
    aligned = "; ".join(_aligned(settings, encoder) for encoder in settings.encoders)
    return {
        "weights": f"{options.weights} of {subject.found.folder}",
        "model": settings.model,
        "aligned with": aligned or "nothing",
        "cache": str(subject.cache.path),
        "images": f"{len(subject.rows):,}, the same noise at all levels (seed {options.seed})",
        "labels": "given to the model" if options.is_conditional else "none given to the model",
    }


def _aligned(settings: TrainSettings, encoder: str) -> str:
    """An encoder and the blocks that were aligned with it."""
    blocks = settings.depths(encoder)
    if not blocks:
        return encoder
    return f"{encoder}, after block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"


def _framed(subject: Subject) -> str:
    is_shown = set(subject.settings.depths()) & set(subject.blocks)
    return " Orange marks the block whose output was aligned." if is_shown else ""


def _told(subject: Subject) -> list[str]:
    if not subject.options.is_conditional:
        return []
    return ["The model was told each image's label, which a probe reads back from it."]


def few_images(trained: int, classes: int) -> list[str]:
    """What is to be said if probes saw too few images of a class."""
    each = trained / classes
    if each >= ENOUGH_PER_CLASS:
        return []
    return [
        f"Probes were trained on {each:.3g} images of each class. With fewer than "
        f"{ENOUGH_PER_CLASS} their accuracies compare with each other, not with published ones."
    ]


def easy(references: Sequence[Accuracy]) -> list[str]:
    """What is to be said if probes of the encoders name nearly every image."""
    if not references or mean(one.top1 for one in references) < TOO_EASY:
        return []
    return [
        "Probes of the encoders name nearly every image: these classes are too easy to tell "
        "features apart, as those of near-duplicate images are."
    ]
