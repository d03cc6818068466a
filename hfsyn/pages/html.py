"""HTML that needs nothing else: pages from templates with one style, pictures within them, tables for notebooks."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL = 96  # pixels of the longer side
_SMALL = 48  # an image up to this size stays as it is, and is enlarged without smoothing
_CELL = "text-align:left;vertical-align:top;padding:.2em 1em .2em 0"


def page(package: str, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """The text of a page: the template ``page.html.jinja`` of a package, in which every value is escaped.

    The template gets `style`, the rules that all pages share, besides `values`; the filter ``raw`` leaves HTML of our
    own as it is.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"raw": Markup, **(filters or {})}
    style = (resources.files("hfsyn.pages") / "style.css").read_text(encoding="utf-8")
    template = (resources.files(package) / "page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(style=style, **values)


def picture(image: Image, most: int = THUMBNAIL) -> dict[str, Any]:
    """``src``, a data URL of an RGB image reduced to `most` pixels, and whether it is ``small``."""
    kind = "png" if max(image.size) <= most else "jpeg"
    shown = image.copy()
    shown.thumbnail((most, most))
    stored = io.BytesIO()
    shown.save(stored, kind, **({"optimize": True} if kind == "png" else {"quality": 85}))
    data = base64.b64encode(stored.getvalue()).decode()
    return {"src": f"data:image/{kind};base64,{data}", "small": max(image.size) <= _SMALL}


class Html(str):
    """HTML of our own, which `table` shows as it is."""


def tag_of(image: Image, title: str = "") -> Html:
    """An ``<img>`` for a cell of `table`."""
    found = picture(image)
    sharp = ";image-rendering:pixelated" if found["small"] else ""
    return Html(f'<img src="{found["src"]}" title="{html.escape(title)}" style="width:{THUMBNAIL}px{sharp}">')


def table(rows: Iterable[Mapping[str, object]], title: str = "") -> str:
    """Rows as an HTML table for a notebook's ``_repr_html_``, their keys as its heads; everything is escaped.

    None is shown as a dash, a float with four digits.
    """
    lines = list(rows)
    heads = list(dict.fromkeys(key for row in lines for key in row))
    head = "".join(f'<th style="{_CELL}">{html.escape(key)}</th>' for key in heads)
    cells = ("".join(f'<td style="{_CELL}">{_cell(row.get(key))}</td>' for key in heads) for row in lines)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    head = f"<thead><tr>{head}</tr></thead>" if any(key.strip() for key in heads) else ""
    said = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    return f"{said}<table>{head}<tbody>{body}</tbody></table>"


def facts(pairs: Iterable[tuple[str, object]], title: str = "") -> str:
    """Names and values as a `table` of two columns without heads; pairs without a value are left out."""
    return table(({"": name, " ": value} for name, value in pairs if value not in (None, "", [], {})), title)


def _cell(value: object) -> str:
    if isinstance(value, Html):
        return value
    if isinstance(value, float):
        value = f"{value:.4g}"
    if isinstance(value, Mapping):
        value = ", ".join(f"{key}: {one}" for key, one in value.items())
    if isinstance(value, list | tuple | set):
        value = ", ".join(map(str, value))
    return "–" if value is None or value == "" else html.escape(str(value)).replace("\n", "<br>")
