"""Draws what came of the experiment from its CSV files, and gathers these from runs.

    python tests/experiments/figure.py                      # results/*.csv to pictures and a table
    python tests/experiments/figure.py --runs runs/sweep    # from runs to results/*.csv, and these

`results/methods.csv` has a line for each number that was measured: of which method, seed and step,
and where that makes sense at which level of noise and behind which block. `results/times.csv` is
what step_times.py measured. What is known of other runs stays.
"""

import argparse
import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from PIL import Image

from pipeline.pages.figures import COLOURS, new_figure, save_png, styled
from pipeline.report.records import is_run, read_run
from stages.analyze.analysis_options import HIDDEN_STATES
from stages.weights.run_folder import analyses_path, samples_path, step_name

HERE = Path(__file__).parent
RESULTS, PICTURES = HERE / "results", HERE.parent / "pictures"
NAMES = {"none": "no alignment", "repa": "REPA", "irepa": "iREPA", "reg": "REG"}
COLOUR_OF = dict(zip(NAMES, (COLOURS[-1], *COLOURS), strict=False))
# What nothing was aligned to, and what is.
JUDGE, TARGET = "efficientnet-lite0", "saliency-vit-s"
DISTANCE, LOSS, PROBE = f"fd_{JUDGE}", "loss", "probe"
CKNNA = {JUDGE: f"cknna {JUDGE}", TARGET: f"cknna {TARGET}"}
SEED = ".seed-"
HOUR = 3600
# Of the picture of samples: two of each class.
COLUMNS, SIDE, GAP = 20, 64, 6
SHOWN_STEPS = (2000, 6000)


@dataclass(frozen=True)
class Number:
    """Something that was measured of a run at a step."""

    method: str
    seed: int
    step: int
    metric: str
    noise: str
    block: str
    value: float


@dataclass(frozen=True)
class Spread:
    """The mean of a value over seeds, the least and the largest."""

    mean: float
    least: float
    most: float


Spreads = Mapping[int, Spread]


def gather(folder: Path) -> list[Number]:
    """All numbers of the runs in a folder."""
    return [one for run in sorted(folder.iterdir()) if is_run(run) for one in numbers_of(run)]


def numbers_of(run: Path) -> Iterator[Number]:
    method, _, seed = run.name.partition(SEED)
    for sample in read_run(run).samples:
        for result in sample.results:
            yield Number(
                method, int(seed or 0), sample.step, result.metric, "", "", round(result.value, 3)
            )
    for kind, read in (("losses", losses), ("probe", probes), ("cknna", likenesses)):
        for path in sorted(analyses_path(run).glob(f"{kind}-step-*.csv")):
            step = int(path.stem.rpartition("-")[2])
            with path.open(newline="") as stream:
                for metric, noise, block, value in read(csv.DictReader(stream)):
                    number = round(float(value), 5)
                    yield Number(method, int(seed or 0), step, metric, noise, block, number)


Line = Mapping[str, str]
Found = Iterator[tuple[str, str, str, str]]


def losses(lines: Iterable[Line]) -> Found:
    for line in lines:
        yield LOSS, line["noise"], "", line["loss"]


def probes(lines: Iterable[Line]) -> Found:
    for line in lines:
        if line["features"] == HIDDEN_STATES:
            yield PROBE, line["noise"], line["block"], line["top1"]


def likenesses(lines: Iterable[Line]) -> Found:
    for line in lines:
        yield CKNNA[line["encoder"]], line["noise"], line["block"], line["cknna"]


def read_numbers(path: Path) -> list[Number]:
    if not path.exists():
        return []
    with path.open(newline="") as stream:
        return [
            Number(
                **{
                    **line,
                    "seed": int(line["seed"]),
                    "step": int(line["step"]),
                    "value": float(line["value"]),
                }
            )
            for line in csv.DictReader(stream)
        ]


def write_numbers(numbers: Sequence[Number], path: Path) -> None:
    """Write numbers in the place of those of the same runs."""
    runs = {(one.method, one.seed) for one in numbers}
    kept = [one for one in read_numbers(path) if (one.method, one.seed) not in runs]
    order = list(NAMES)
    rows = sorted([*kept, *numbers], key=lambda one: (order.index(one.method), one.seed, one.step))
    with path.open("w", newline="") as stream:
        names = [field.name for field in fields(Number)]
        csv.writer(stream, lineterminator="\n").writerows([names, *map(astuple, rows)])


def spreads(
    numbers: Sequence[Number], method: str, metric: str, of_run: Callable = mean
) -> Spreads:
    """A metric of a method by step.

    of_run: what is made of a run's values at all levels of noise and blocks.
    """
    found: dict[int, dict[int, list[float]]] = {}
    for one in numbers:
        if (one.method, one.metric) == (method, metric):
            found.setdefault(one.step, {}).setdefault(one.seed, []).append(one.value)
    by_step = {step: [of_run(one) for one in seeds.values()] for step, seeds in found.items()}
    return {
        step: Spread(mean(values), min(values), max(values))
        for step, values in sorted(by_step.items())
    }


def read_times(path: Path) -> dict[tuple[str, str], float]:
    """Seconds by method, or encoder, and how."""
    with path.open(newline="") as stream:
        return {
            (one["method"], one["how"]): float(one["seconds"]) for one in csv.DictReader(stream)
        }


def draw_curve(axes: Axes, places: Sequence[float], values: Spreads, method: str, **look) -> None:
    colour, shown = COLOUR_OF[method], list(values.values())
    axes.plot(places, [one.mean for one in shown], color=colour, markersize=3.5, **look)
    least, most = [one.least for one in shown], [one.most for one in shown]
    axes.fill_between(places, least, most, color=colour, alpha=0.18, linewidth=0)


def draw_methods(
    numbers: Sequence[Number], times: Mapping[tuple[str, str], float], path: Path
) -> None:
    """Distances over steps, and over hours from the cache and with the encoder in every step."""
    with styled():
        figure = new_figure(10, 3.7)
        by_step, by_hour = figure.subplots(1, 2, sharey=True)
        for method, name in NAMES.items():
            values = spreads(numbers, method, DISTANCE)
            draw_curve(by_step, list(values), values, method, marker="o", label=name)
            for how, dashes in (("cache", "-"), ("online", ":")):
                if (method, how) in times:
                    hours = hours_of(times, method, how, values)
                    draw_curve(by_hour, hours, values, method, marker="o", linestyle=dashes)
        by_step.set(
            xlabel="steps of 32 images", ylabel="Frechet distance, lower is better", yscale="log"
        )
        by_step.set_title("Does alignment help?", loc="left")
        by_hour.set(xlabel="hours of one core")
        by_hour.set_title("Does caching help?", loc="left")
        by_hour.plot([], [], "-", color=COLOUR_OF["none"], label="from the cache, encoding counted")
        by_hour.plot([], [], ":", color=COLOUR_OF["none"], label="encoder in every step")
        by_step.legend()
        by_hour.legend()
        set_ticks(by_step, [s.mean for m in NAMES for s in spreads(numbers, m, DISTANCE).values()])
        save_png(figure, path)


def hours_of(
    times: Mapping[tuple[str, str], float], method: str, how: str, steps: Iterable[int]
) -> list[float]:
    """Of a run up to some steps; one from the cache waits until all images are encoded once."""
    is_first = how == "cache" and (method, "online") in times
    before = times[TARGET, "build"] if is_first else 0.0
    return [(before + step * times[method, how]) / HOUR for step in steps]


def set_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Numbers of a logarithmic axis as they are."""
    steps = (50, 100, 150, 200, 300, 400, 500, 700, 1000)
    axes.set_yticks([t for t in steps if min(values) * 0.9 < t < max(values) * 1.1], minor=False)
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_minor_formatter("")


def draw_states(numbers: Sequence[Number], path: Path) -> None:
    """What hidden states know of classes and of encoders, and the loss of images held out."""
    panels = (
        ("Linear probe of hidden states", PROBE, max, "best block and noise, top-1"),
        ("CKNNA with EfficientNet-Lite0", CKNNA[JUDGE], max, "best block and noise"),
        ("Denoising loss, held out", LOSS, mean, "mean over noise"),
    )
    with styled():
        figure = new_figure(10, 3.2)
        for axes, (title, metric, of_run, label) in zip(
            figure.subplots(1, len(panels)), panels, strict=True
        ):
            for method, name in NAMES.items():
                values = spreads(numbers, method, metric, of_run)
                draw_curve(axes, list(values), values, method, marker="o", label=name)
            axes.set(xlabel="steps", ylabel=label)
            axes.set_title(title, loc="left")
        figure.axes[0].legend()
        save_png(figure, path)


def strip_path(method: str, step: int) -> Path:
    """The first samples of a method's first seed, side by side."""
    return RESULTS / f"samples-{method}-{step}.png"


def save_strips(run: Path, steps: Iterable[int]) -> None:
    """Keep the first samples of a run, fewer colours of them."""
    for step in steps:
        samples = samples_path(run, step_name(step))
        strip = Image.new("RGB", (COLUMNS * SIDE, SIDE))
        for column in range(COLUMNS):
            with Image.open(samples / f"{column:06}.png") as image:
                strip.paste(image, (column * SIDE, 0))
        strip.quantize(256).save(strip_path(run.name, step), optimize=True)


def draw_samples(steps: Sequence[int], path: Path) -> None:
    """The same noises and labels of every method, a row each, at some steps."""
    rows = [(step, method) for step in steps for method in NAMES]
    gaps = GAP * (len(steps) - 1)
    canvas = Image.new("RGB", (COLUMNS * SIDE, len(rows) * SIDE + gaps), "white")
    for row, (step, method) in enumerate(rows):
        with Image.open(strip_path(method, step)) as strip:
            canvas.paste(strip, (0, row * SIDE + row // len(NAMES) * GAP))
    canvas.save(path, quality=88)


def table(numbers: Sequence[Number]) -> list[str]:
    """The last step of each method, as a table of Markdown."""
    heads = ("method", "FD, EfficientNet-Lite0", "FD, ViT-S", "held-out loss", "probe", "CKNNA")
    measures: tuple[tuple[str, Callable, str], ...] = (
        (DISTANCE, mean, ".1f"),
        (f"fd_{TARGET}", mean, ".1f"),
        (LOSS, mean, ".4f"),
        (PROBE, max, ".1%"),
        (CKNNA[JUDGE], max, ".3f"),
    )
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for method, name in NAMES.items():
        cells = [name]
        for metric, of_run, form in measures:
            *_, last = spreads(numbers, method, metric, of_run).values()
            half = (last.most - last.least) / 2
            cells.append(f"{last.mean:{form}} ± {half:{form}}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws what came of the experiment.")
    parser.add_argument("--runs", type=Path)
    runs = parser.parse_args().runs
    path = RESULTS / "methods.csv"
    if runs is not None:
        write_numbers(gather(runs), path)
        for method in filter(lambda name: is_run(runs / name), NAMES):
            save_strips(runs / method, SHOWN_STEPS)
    numbers = read_numbers(path)
    draw_methods(numbers, read_times(RESULTS / "times.csv"), PICTURES / "methods.png")
    draw_states(numbers, PICTURES / "methods-states.png")
    draw_samples(SHOWN_STEPS, PICTURES / "methods-samples.jpg")
    print("\n".join(table(numbers)))


if __name__ == "__main__":
    main()
