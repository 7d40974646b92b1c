"""What is known of a cache's encoders: for a page, a CSV file and the terminal."""

from collections.abc import Sequence

from rich.filesize import decimal

from pipeline.analysis import state_tables
from stages.analyze.cached_encoders import EncoderComparison, EncoderScores

ENCODER_COLUMNS = (
    *("encoder", "tokens", "features", "storage", "bytes_per_image", "lds", "cds", "contrast"),
    *(
        "effective_rank",
        "outliers",
        *(f"mean_token_{name}" for name in state_tables.ACCURACY_COLUMNS),
    ),
    *(f"class_token_{name}" for name in state_tables.ACCURACY_COLUMNS),
)

LIKENESS_CAPTION = (
    "Likeness: the mean cosine of two tokens of an image by their Manhattan distance; LDS is the "
    "mean of pairs left of the dotted line less that of the others."
)
CLASSES_CAPTION = (
    " Structure and classes: higher is more spatial structure, further right more of the class."
)


def encoders_findings(found: EncoderComparison) -> state_tables.Findings:
    """Of encoders side by side."""
    head, rows = encoders_summary(found)
    names = [one.name for one in found.encoders]
    probed = [one.mean_token for one in found.encoders if one.mean_token is not None]
    pairs = [(a, *(f"{found.cknna[a, b]:.3f}" for b in names)) for a in names]
    return state_tables.Findings(
        title=f"Encoders of {found.path.name}",
        lead=_ranking(found.encoders),
        notes=(*state_tables.few_images(found.trained, found.classes), *state_tables.easy(probed))
        if probed
        else (),
        caption=LIKENESS_CAPTION + (CLASSES_CAPTION if probed else ""),
        tables=[
            state_tables.Table("Structure and classes" if probed else "Structure", head, rows),
            state_tables.Table("CKNNA of mean tokens", ("", *names), pairs),
        ],
        facts={
            "cache": str(found.path),
            "images": f"{found.images:,}; structure of {found.encoders[0].structure.images:,}",
            "LDS": "mean cosine of tokens nearer than half a side, less that of others (iREPA)",
            "CDS": "how much the mean cosine falls with each step of distance (iREPA)",
            "contrast": "RMSC of iREPA: root mean square distance of unit tokens from their mean",
            "rank": "participation ratio of the covariance of tokens",
            "outliers": "tokens more than three times as long as the median",
        },
        columns=(*ENCODER_COLUMNS, *(f"cknna {name}" for name in names)),
        values=[
            (*_encoder_values(one), *(f"{found.cknna[one.name, other]:.6f}" for other in names))
            for one in found.encoders
        ],
    )


def encoders_summary(found: EncoderComparison) -> tuple[state_tables.Row, list[state_tables.Row]]:
    """A line for each encoder."""
    head = ("encoder", "tokens", "bytes per image", "LDS", "CDS", "contrast", "rank", "outliers")
    probes = ("probe: mean token", "class token") if found.trained else ()
    rows: list[state_tables.Row] = []
    for one in found.encoders:
        structure, side = one.structure, round(one.tokens**0.5)
        accuracies = one.mean_token, one.class_token
        rows.append(
            (
                one.name,
                f"{side} x {side} x {one.features} {one.storage}",
                decimal(one.row_bytes),
                f"{structure.lds:.3f}",
                f"{structure.cds:.4f}",
                f"{structure.contrast:.3f}",
                f"{structure.effective_rank:.1f}",
                f"{structure.outliers:.2%}",
                *(
                    "" if accuracy is None else state_tables.share(accuracy)
                    for accuracy in accuracies[: len(probes)]
                ),
            )
        )
    return (*head, *probes), rows


def _encoder_values(one: EncoderScores) -> tuple[object, ...]:
    structure = one.structure
    spatial = structure.lds, structure.cds, structure.contrast
    measured = (*spatial, structure.effective_rank, structure.outliers)
    return (
        *(one.name, one.tokens, one.features, one.storage, one.row_bytes),
        *(f"{value:.6g}" for value in measured),
        *state_tables.accuracy_values(one.mean_token),
        *state_tables.accuracy_values(one.class_token),
    )


def _ranking(encoders: Sequence[EncoderScores]) -> str:
    known = (
        "Over 27 encoders, the FID of SiT-XL/2 with REPA followed LDS (|r| = 0.85) and contrast "
        "(0.89), and hardly the probe's accuracy (0.26) (iREPA, arXiv 2512.10794): a hint which to "
        "try first, no promise, and nothing between values that are close."
    )
    if len(encoders) == 1:
        return known
    order = ", ".join(f"{one.name} ({one.structure.lds:.2f})" for one in encoders)
    return f"From more spatial structure to less, by LDS: {order}. {known}"
