"""Pages of pictures: one HTML file each that needs no other file, no server and no network."""

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from cache.files import write_atomically

_templates = Environment(
    loader=PackageLoader("pipeline", "pages"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a page from a template of this folder, which extends `base.html`.

    values: what the template names; text is escaped, `Markup` is not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _templates.get_template(template).render(values)
    # Names of files need not be text.
    write_atomically(path, page.encode(errors="backslashreplace"))


def embedded(picture: Path | bytes | Image.Image) -> str:
    """A PNG as an address for `src`: its file, its bytes, or an image."""
    if isinstance(picture, Path):
        picture = picture.read_bytes()
    elif isinstance(picture, Image.Image):
        stream = io.BytesIO()
        picture.save(stream, "png")
        picture = stream.getvalue()
    return _address("png", picture)


def compressed(picture: Image.Image, quality: int) -> str:
    """A picture as an address for `src`, as WebP of a quality from 0 to 100."""
    stream = io.BytesIO()
    picture.save(stream, "webp", quality=quality)
    return _address("webp", stream.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
