"""A plan as one JSON object: bytes, seconds, numbers per second, operations.

cache, images, counted_in, model, encoders, advice
disk        arrays, whole, missing, needed_bytes, free_bytes, folder, fits
networks    by column: flops of an image, seconds for it in a build and online
build       is_measured, device, parts (seconds of what runs side by side), seconds, slowest
reading     image_bytes, gpus, what one and all of them need, and what was measured or null
gains       operations, epochs, break-even and savings, as shares of a run
"""

from dataclasses import asdict
from typing import Any

from cache.sizes import Size
from pipeline.plan.advice import SWEEP_RUNS, advice
from pipeline.plan.outline import Plan
from pipeline.reading_speed import GPU_FLOPS


def exported(plan: Plan) -> dict[str, Any]:
    """The plan in values that JSON has."""
    return {
        "cache": str(plan.config.cache.path),
        "images": plan.images.count,
        "counted_in": plan.images.counted_in,
        "model": plan.config.train.model,
        "encoders": list(plan.config.train.encoders),
        "disk": _disk(plan),
        "networks": _networks(plan),
        "build": _build(plan),
        "reading": _reading(plan),
        "gains": _gains(plan),
        "advice": advice(plan),
    }


def _disk(plan: Plan) -> dict[str, Any]:
    space = plan.space
    arrays = [
        {
            "column": one.column,
            "array": one.array.name,
            "dtype": one.array.dtype,
            "row_shape": list(one.array.row_shape),
            "whole": _size(one.whole),
            "missing": _size(one.missing),
        }
        for one in space.arrays
    ]
    return {
        "arrays": arrays,
        "metadata": {"whole": _size(space.metadata), "missing": _size(space.missing_metadata)},
        "whole": _size(space.whole),
        "missing": _size(space.missing),
        "compressed": space.compressed,
        "needed_bytes": space.needed_bytes,
        "free_bytes": space.free_bytes,
        "folder": str(space.folder),
        "fits": space.fits,
    }


def _size(size: Size) -> dict[str, int]:
    return asdict(size)


def _networks(plan: Plan) -> dict[str, Any]:
    return {
        one.column.name: {
            "flops": one.flops,
            "build_seconds_per_image": plan.pace.building[one.column.name],
            "online_seconds_per_image": plan.pace.online[one.column.name],
            "missing_images": one.missing_rows,
        }
        for one in plan.foreseen
    }


def _build(plan: Plan) -> dict[str, Any]:
    return {
        "is_measured": plan.measured is not None,
        "device": plan.device_name,
        "parts": plan.build.parts,
        "seconds": plan.build.seconds,
        "slowest": plan.build.slowest,
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
