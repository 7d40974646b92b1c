"""A plan as one JSON object, and as tables for the terminal.

cache, images, counted_in, model, parameters, encoders, advice
disk        arrays, whole, missing, needed_bytes, free_bytes, folder, fits
networks    by column: flops of an image, seconds for it in a build and online
build       is_measured, device, parts (seconds of what runs side by side), seconds, slowest
feeding     of all GPUs that encode: images_per_second, core_seconds of an image, cores; or null
memory      of a GPU in training: states, gradients, activations, copies, peak, card_bytes, fits
reading     image_bytes, gpus, what one and all of them need, and what was measured or null
gains       operations, epochs, break-even and savings, as shares of a run
"""

from dataclasses import asdict
from math import ceil
from typing import Any

import typer
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from cache.arrays import physical_memory_bytes
from cache.layout import FLIPPED
from pipeline.plan.advice import SWEEP_RUNS, advice
from pipeline.plan.durations import FLOPS
from pipeline.plan.outline import Plan
from pipeline.plan.reading_speed import GPU_FLOPS
from pipeline.plan.space import exported_space
from pipeline.plan.store_use import uses_table
from pipeline.tables import count, duration, new_table, operations, percent, print_table, rate
from stages.encode.building.recipes import features_column, text_column

# Arrays that are small and in every column.
BESIDE = ("valid", "crc32c", "ledger")


def exported(plan: Plan) -> dict[str, Any]:
    """The plan in values that JSON has."""
    return {
        "cache": str(plan.config.cache.path),
        "images": plan.images.count,
        "counted_in": plan.images.counted_in,
        "model": plan.config.train.model,
        "parameters": plan.footprint.parameters,
        "encoders": list(plan.config.train.encoders),
        "disk": exported_space(plan.space),
        "store": [asdict(use) for use in plan.uses],
        "networks": {
            one.column.name: {
                "flops": one.flops,
                "build_seconds_per_image": plan.pace.building[one.column.name],
                "online_seconds_per_image": plan.pace.online[one.column.name],
                "missing_images": one.missing_rows,
            }
            for one in plan.foreseen
        },
        "build": {
            "is_measured": plan.measured is not None,
            "device": plan.device_name,
            "parts": plan.build.parts,
            "seconds": plan.build.seconds,
            "slowest": plan.build.slowest,
        },
        "feeding": plan.feeding and {**asdict(plan.feeding), "cores": plan.feeding.cores},
        "memory": {
            **asdict(plan.memory),
            "peak": plan.memory.peak,
            "card_bytes": plan.card_bytes,
            "fits": plan.memory.fits(plan.card_bytes),
        },
        "reading": _reading(plan),
        "gains": _gains(plan),
        "advice": advice(plan),
    }


def _reading(plan: Plan) -> dict[str, Any]:
    rate, measured = plan.rate, plan.measured
    return {
        "image_bytes": rate.image_bytes,
        "gpus": rate.gpus,
        "assumed_gpu_flops": GPU_FLOPS,
        "images_per_second_of_a_gpu": rate.images_per_second,
        "needed_images_per_second": rate.needed_images_per_second,
        "needed_bytes_per_second": rate.needed_bytes_per_second,
        "measured_cold_images_per_second": measured and measured.reading.cold,
        "measured_warm_images_per_second": measured and measured.reading.warm,
        "measured_write_bytes_per_second": measured and measured.write_bytes_per_second,
    }


def _gains(plan: Plan) -> dict[str, Any]:
    gains = plan.gains
    return {
        **asdict(gains),
        "step_ratio": gains.step_ratio,
        "break_even_epochs": gains.break_even_epochs,
        "break_even_runs": gains.break_even_runs,
        "run_saving": gains.run_saving,
        "saving_of_one_run": gains.saving(1),
        f"saving_of_{SWEEP_RUNS}_runs": gains.saving(SWEEP_RUNS),
    }


def show_plan(plan: Plan) -> None:
    """Print all of a plan."""
    config, images = plan.config, plan.images
    aligned = ", ".join(config.train.encoders) or "no encoder"
    typer.echo(
        f"{config.cache.path}: {images.count:,} images ({images.counted_in}) at "
        f"{config.dataset.resolution} px; {config.train.model} aligned to {aligned}"
    )
    show_space(plan)
    if plan.uses:
        _print("Asked of the store", uses_table(plan.uses))
    _show_networks(plan)
    show_build(plan)
    _show_memory(plan)
    _show_reading(plan)
    _show_gains(plan)
    table = Table(box=None, pad_edge=False, show_header=False)
    for sentence in advice(plan):
        table.add_row("-", escape(sentence))
    _print("What follows", table)


def _print(title: str, table: Table) -> None:
    typer.echo()
    typer.secho(title, bold=True)
    print_table(table)


def show_space(plan: Plan) -> None:
    """Print what the cache takes of its disk."""
    space = plan.space
    table = new_table("array", "type", "row", "in all", "to write", has_numbers=True)
    for one in (one for one in space.arrays if one.array.name not in BESIDE):
        about = "~" if one.array.is_compressed else ""
        table.add_row(
            f"{one.column}/{one.array.name}",
            one.array.dtype,
            " x ".join(map(str, one.array.row_shape)),
            about + decimal(one.whole.bytes),
            about + decimal(one.missing.bytes),
        )
    small = [one for one in space.arrays if one.array.name in BESIDE]
    whole = sum((one.whole for one in small), space.metadata)
    missing = sum((one.missing for one in small), space.missing_metadata)
    blank = ("",) * 2
    small_sizes = decimal(whole.bytes), decimal(missing.bytes)
    sizes = decimal(space.whole.bytes), decimal(space.missing.bytes)
    table.add_row("rows, checksums, metadata", *blank, *small_sizes)
    table.add_row("all", *blank, *sizes, style="bold")
    table.add_row("files", *blank, f"{space.whole.files:,}", f"{space.missing.files:,}")
    if space.needed_bytes != space.missing.bytes:
        table.add_row("room that a build begins with", *blank, "", decimal(space.needed_bytes))
    if space.free_bytes is not None:
        verdict, style = ("it fits", "") if space.fits else ("too little", "bold red")
        free = decimal(space.free_bytes)
        table.add_row(f"free in {space.folder}", *blank, verdict, free, style=style)
    _print("Objects" if space.free_bytes is None else "Disk", table)


def _show_networks(plan: Plan) -> None:
    step = plan.gains.step_flops
    table = new_table("network", "GFLOP", "of a step", "", has_numbers=True)
    table.columns[-1].justify = "left"
    encoders = map(plan.config.encode.network, plan.config.train.encoders)
    used = {*map(features_column, encoders), text_column(plan.config.train.text or "")}
    for one in plan.foreseen:
        name = one.column.name
        if not one.flops or name.endswith(FLIPPED):
            continue
        remark = "online: in every step" if name in used else "not in this run"
        if name == plan.config.latents.column:
            remark = "published code precomputes it"
        table.add_row(name, operations(one.flops), percent(one.flops / step), remark)
    size = f"{plan.footprint.parameters / 1e6:,.1f} M parameters"
    model = f"{plan.config.train.model} ({size}), forward and backward"
    table.add_row(model, operations(step), "", "")
    _print("Operations for an image", table)


def show_build(plan: Plan) -> None:
    """Print what a build takes."""
    build = plan.build
    if plan.measured:
        how = f"measured on this {plan.device_name}"
    else:
        rates = ", ".join(f"{flops / 1e12:.0f} in {name}" for name, flops in FLOPS.items())
        how = f"assumed of an H100, in TFLOP/s: {rates}"
    table = new_table("part", "speed", "time", has_numbers=True)
    speeds = {
        one.column.name: f"{rate(1 / plan.pace.building[one.column.name])} {one.unit}/s"
        for one in plan.foreseen
        if one.flops
    }
    if plan.measured:
        speeds["writing"] = f"{decimal(round(plan.measured.write_bytes_per_second))}/s"
        if plan.measured.decoding:
            speeds["decoding"] = f"{rate(plan.measured.decoding.images_per_second)} images/s"
    times = {**build.networks, **build.parts}
    for part, speed in speeds.items():
        table.add_row(part, speed, duration(times[part]))
    slowest = "" if build.is_shared or not plan.measured else f", as long as {build.slowest}"
    table.add_row(f"all{slowest}", "", duration(build.seconds), style="bold")
    _print(f"Build on one device, {how}", table)


def _show_memory(plan: Plan) -> None:
    if not plan.has_gpu:
        return
    memory, images = plan.memory, ceil(plan.config.train.batch_size / plan.rate.gpus)
    table = new_table("", "", has_numbers=True)
    table.show_header = False
    parts = {
        "weights, moving average, optimiser": memory.states,
        "activations": memory.activations,
        "weights in half precision": memory.copies,
        "gradients": memory.gradients,
        "at most at a time": memory.peak,
    }
    for name, size in parts.items():
        table.add_row(name, decimal(round(size)))
    verdict, style = ("it fits", "") if memory.fits(plan.card_bytes) else ("too little", "bold red")
    table.add_row(f"{decimal(round(plan.card_bytes))} of a GPU", verdict, style=style)
    _print(f"Memory of a GPU that trains on {images} images of a step, estimated", table)


def _show_reading(plan: Plan) -> None:
    needed, size = plan.rate, plan.rate.image_bytes
    table = new_table("", "images/s", "GB/s", "feeds GPUs", has_numbers=True)
    rows = {f"a GPU at {GPU_FLOPS / 1e12:.0f} TFLOP/s needs, assumed": needed.images_per_second}
    if needed.gpus > 1:
        rows[f"{needed.gpus} GPUs need"] = needed.needed_images_per_second
    for name, images in rows.items():
        table.add_row(name, rate(images), f"{images * size / 1e9:.3g}", "")
    if plan.measured:
        reading = plan.measured.reading
        rates = {"from the disk": reading.cold}
        if size * plan.images.count < physical_memory_bytes():
            rates["from memory"] = reading.warm
        for name, images in rates.items():
            feeds = f"{images / needed.images_per_second:.2g}"
            table.add_row(f"measured {name}", rate(images), f"{images * size / 1e9:.3g}", feeds)
    _print("Reading", table)


def _show_gains(plan: Plan) -> None:
    gains = plan.gains
    if gains.break_even_epochs is None or gains.break_even_runs is None:
        return
    epochs = f"{gains.epochs:,.4g}"
    if gains.aligned_epochs < gains.epochs:
        epochs += f", {gains.aligned_epochs:,.4g} of them aligned"
    table = new_table("", "", has_numbers=True)
    table.show_header = False
    per = f"on one {plan.device_name}"
    break_even = f"{count(gains.break_even_epochs)} epochs, {count(gains.break_even_runs)} runs"
    facts = {
        "a step with encoders online, against one from the cache": f"{gains.step_ratio:.2f} x",
        "epochs of a run": epochs,
        f"encoding once for the cache, {per}": duration(gains.build_seconds),
        f"encoding online, an epoch, {per}": duration(gains.online_epoch_seconds),
        "break-even": break_even,
        "saved of every run, at most": percent(gains.run_saving),
        "saved of one run, encoding counted": _saved(gains.saving(1)),
        f"saved of {SWEEP_RUNS} runs, encoding counted": _saved(gains.saving(SWEEP_RUNS)),
    }
    for name, value in facts.items():
        table.add_row(name, value)
    _print("Cache against encoders online", table)


def _saved(share: float) -> str:
    """A share that is saved, unless it is a loss."""
    return percent(share) if share > 0 else "nothing: it costs more"
