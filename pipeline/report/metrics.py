"""Which values of a metric are better, whether of samples or of hidden states."""

from stages.evaluate.evaluate_settings import CLIP_SCORE, INCEPTION_METRICS

# Of analyses. Of CKNNA there is one for each encoder, whose name follows.
LOSS, PROBE, CKNNA = "denoising loss", "linear probe", "cknna"


def is_higher_better(metric: str) -> bool:
    """Whether a larger value of a metric is a better one."""
    if metric == PROBE or metric.startswith(f"{CKNNA} "):
        return True
    known = INCEPTION_METRICS.get(metric)
    return metric == CLIP_SCORE or (known is not None and known.is_higher_better)


def direction(metric: str) -> str:
    """Which values are better, as an arrow."""
    return "\N{UPWARDS ARROW}" if is_higher_better(metric) else "\N{DOWNWARDS ARROW}"
