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


def embedded(picture: Path | Image.Image) -> str:
    """A PNG as an address for `src`: its file, or an image."""
    return _address("png", picture.read_bytes() if isinstance(picture, Path) else _saved(picture))


def compressed(picture: Image.Image, quality: int) -> str:
    """A picture as an address for `src`, as WebP of a quality from 0 to 100."""
    return _address("webp", _saved(picture, "webp", quality=quality))


def _saved(picture: Image.Image, kind: str = "png", **options: int) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
