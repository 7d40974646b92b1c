"""The page of pictures of a cache, and the PNG files beside it."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from cache.rows import RowTable
from pipeline.inspection import picture_data
from pipeline.inspection.contents import Contents, encoder_of
from pipeline.inspection.drawings import draw_overview, drawings, sheets
from pipeline.inspection.listings import Listing, cache_listings, headline
from pipeline.inspection.shown_images import Neighbours, RowNumbers, class_of
from pipeline.pages import compressed, embedded, write_page
from pipeline.pages.figures import inline_svg, save_png, styled
from stages.analyze.neighbours import Neighbour
from stages.sample.png_files import save_grid

# Photographs up to this side are embedded as they are; larger ones are made smaller, with loss.
EXACT_SIDE, LARGEST_SIDE, QUALITY = 128, 256, 90
THUMBNAIL_SIDE = 96
# Of the PNG files: images beside one another, and the least side of each.
SHEET_COLUMNS, SHEET_SIDE = 8, 128


@dataclass(frozen=True)
class Selection:
    """Images that are looked at.

    rows: theirs, [R]; columns: those that have them all; neighbours: of each; listings: what
    there is to say of them.
    """

    table: RowTable
    rows: RowNumbers
    columns: list[str]
    neighbours: Neighbours
    listings: list[Listing]


def write_pictures(
    folder: Path, contents: Contents, chosen: Selection, data: picture_data.PictureData
) -> Path:
    """Write the page and its PNG files into a folder; returns the page."""
    storages = {
        encoder_of(held.name): str(held.column.recipe["storage"]) for held in contents.columns
    }
    listings = [*cache_listings(contents), *chosen.listings]
    views = picture_data.view_encoders(data.tokens)
    found = sheets(data, views)
    folder.mkdir(parents=True, exist_ok=True)
    for sheet in found:
        save_grid(folder / f"{sheet.name}.png", _enlarged(sheet.pictures), SHEET_COLUMNS)
    figures = []
    with styled():
        if found:
            save_png(draw_overview(found), folder / "overview.png")
        for drawing in drawings(data, chosen.table, storages):
            save_png(drawing.figure, folder / f"{drawing.name}.png")
            figures.append({"svg": inline_svg(drawing.figure), "caption": drawing.caption})
    page = folder / "index.html"
    write_page(
        page,
        "inspect.html",
        title=contents.path.name,
        lines=headline(contents),
        resolution=contents.columns[0].column.recipe["resolution"],
        listings=[listing for listing in listings if listing.rows],
        notes=data.notes,
        encoders=views,
        storages=storages,
        middle=picture_data.middle([view.grid for view in views]) if views else 0.5,
        strips=[
            {
                **_strip(place, chosen, data, views),
                "captions": contents.told.of(row) if contents.told else [],
            }
            for place, row in enumerate(data.rows.tolist())
        ],
        figures=figures,
        data=_data(views),
    )
    return page


def _enlarged(pictures: picture_data.Pixels) -> list[picture_data.Pixels]:
    """Pictures [R, side, side, 3] whose pixels are squares, large enough to be looked at."""
    times = -(-SHEET_SIDE // pictures.shape[1])
    return list(pictures.repeat(times, axis=1).repeat(times, axis=2))


def _strip(
    place: int,
    chosen: Selection,
    data: picture_data.PictureData,
    views: Sequence[picture_data.EncoderView],
) -> dict[str, Any]:
    """What the page shows of one image. place: which of those that are shown."""
    row = int(data.rows[place])
    return {
        "key": str(chosen.table.key[row]),
        "class": class_of(chosen.table, row),
        "photographs": list(_photographs(place, data)),
        "encoders": [
            {
                "components": embedded(Image.fromarray(view.colours[place])),
                "similarity": embedded(Image.fromarray(view.brightness(place))),
                "low": float(view.cosines[place].min()),
                "high": float(view.cosines[place].max()),
            }
            for view in views
        ],
        "neighbours": [
            _thumbnails(encoder, lists[place], row, chosen.table, data.nearby)
            for encoder, lists in chosen.neighbours.items()
        ],
    }


def _photographs(place: int, data: picture_data.PictureData) -> Iterator[dict[str, Any]]:
    if data.crops is not None:
        yield _photograph(data.crops[place], "crop")
    if (decoded := data.decoded) is not None:
        near = "" if decoded.psnr is None else f", {decoded.psnr[place]:.1f} dB"
        yield _photograph(decoded.images[place], f"decoded latents{near}")


def _photograph(image: Tensor, caption: str) -> dict[str, Any]:
    """An image, uint8 [3, S, S], for the page; small ones show their pixels."""
    picture, is_small = _picture(image), image.shape[-1] <= EXACT_SIDE
    address = embedded(picture) if is_small else _compressed(picture, LARGEST_SIDE)
    return {"source": address, "caption": caption, "is_small": is_small}


def _thumbnails(
    encoder: str,
    nearest: Sequence[Neighbour],
    row: int,
    table: RowTable,
    nearby: Mapping[int, Tensor],
) -> dict[str, Any]:
    """The neighbours of an image by one encoder."""
    own = class_of(table, row)
    thumbnails = [
        {
            "key": str(table.key[near.row]),
            "class": (name := class_of(table, near.row)),
            "is_own": name == own,
            "similarity": near.similarity,
            "source": _compressed(_picture(nearby[near.row]), THUMBNAIL_SIDE)
            if near.row in nearby
            else None,
        }
        for near in nearest
    ]
    return {"encoder": encoder, "thumbnails": thumbnails}


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def _compressed(picture: Image.Image, side: int) -> str:
    """A picture as an address for `src`, not larger than `side` and with a little loss."""
    picture.thumbnail((side, side))
    return compressed(picture, QUALITY)


def _data(views: Sequence[picture_data.EncoderView]) -> dict[str, Any]:
    """What the page computes similarities from, when a patch is chosen."""
    encoders = [
        {
            "grid": view.grid,
            "weights": (view.directions.scales**2).round(12).tolist(),
            "codes": base64.b64encode(view.directions.codes.tobytes()).decode(),
        }
        for view in views
    ]
    return {"palette": picture_data.palette().flatten().tolist(), "encoders": encoders}
