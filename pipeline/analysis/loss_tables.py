"""What is known of a run's denoising losses: for a page, a CSV file and the terminal."""

from pipeline.analysis.state_tables import Findings, Row, Table, state_facts
from stages.analyze.losses import LossScores

HEAD = ("noise", "denoising loss")


def loss_findings(found: LossScores) -> Findings:
    """Of losses by level of noise."""
    subject = found.subject
    return Findings(
        title=f"Denoising losses of {subject.run.name}, {subject.title}",
        lead=(
            f"The loss that training has, of each of {len(subject.rows):,} images at each level of "
            "noise: the squared error of what is predicted, averaged. All runs see the same noise, "
            "so that their losses differ by less than the standard errors say."
        ),
        notes=subject.notes,
        caption="Denoising loss by level of noise; the shade is its standard error.",
        tables=[Table("Denoising losses", *loss_summary(found))],
        facts=state_facts(subject),
        columns=("noise", "loss", "loss_error", "images"),
        values=[
            (one.level, f"{one.mean:.8g}", f"{one.error:.8g}", len(one.losses))
            for one in found.levels
        ],
    )


def loss_summary(found: LossScores) -> tuple[Row, list[Row]]:
    """A line for each level of noise, and for their mean."""
    mean = sum(one.mean for one in found.levels) / len(found.levels)
    return HEAD, [
        *((f"{one.level:g}", f"{one.mean:.4f} ± {one.error:.4f}") for one in found.levels),
        ("mean", f"{mean:.4f}"),
    ]
