"""Pictures that a slider turns over.

``slider`` makes a small piece of HTML with its pictures inside, which works without a network, and
without JavaScript as a contact sheet.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image


def webp(data: bytes) -> bytes:
    """The same picture as WebP, to the pixel where that is small, and else nearly so.

    Drawings and small pictures stay exact. A photo of more than 30 kB is stored at quality 85,
    which takes about a tenth of the bytes of a PNG.
    """
    image = Image.open(io.BytesIO(data))
    exact, near = io.BytesIO(), io.BytesIO()
    image.save(exact, format="WEBP", lossless=True, method=6)
    if exact.tell() <= 30_000:
        return exact.getvalue()
    image.save(near, format="WEBP", quality=85, method=6)
    return min(exact.getvalue(), near.getvalue(), key=len)


def png(picture: ArrayLike | Figure, width: int | None = None) -> bytes:
    """PNG bytes of a picture or figure.

    A picture is (h, w) or (h, w, 3), uint8, or floating point between 0 and 1 (what lies outside
    is clipped). ``width`` in pixels scales a picture down.
    """
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi="figure", bbox_inches="tight")
        return buffer.getvalue()
    pixels: NDArray[Any] = np.asarray(picture)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise ValueError(f"a picture is (h, w) or (h, w, 3), but has shape {pixels.shape}.")
    if pixels.dtype != np.uint8:
        if not np.isfinite(pixels).all():
            raise ValueError("a picture must not hold NaN or infinite values.")
        pixels = np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if width is not None and width < image.width:
        height = max(1, round(image.height * width / image.width))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class Slider:
    """Pictures under a slider: what ``slider`` returns. A notebook shows it when it is named."""

    def __init__(
        self, pngs: list[bytes], labels: list[str], alt: str, name: str, start: int, caption: str
    ) -> None:
        self.pngs = pngs
        self.labels = labels
        self.alt = alt
        self.name = name
        self.start = start
        self.caption = caption

    def __repr__(self) -> str:
        return f"Slider of {len(self.pngs)} pictures: {self.labels[0]} … {self.labels[-1]}"

    def _repr_png_(self) -> bytes:
        """A contact sheet, for readers that show no HTML, such as a PDF."""
        columns = min(3, len(self.pngs))
        lines = math.ceil(len(self.pngs) / columns)
        figure, axes = plt.subplots(
            lines, columns, figsize=(9, 2.7 * lines), squeeze=False, dpi=100
        )
        for ax in axes.flat:
            ax.set_axis_off()
        for ax, data, label in zip(axes.flat, self.pngs, self.labels, strict=False):
            ax.imshow(np.asarray(Image.open(io.BytesIO(data))), cmap="gray", vmin=0, vmax=255)
            ax.set_title(textwrap.fill(label, 40), fontsize=8, loc="left")
        data = png(figure)
        plt.close(figure)
        return data

    def _repr_html_(self) -> str:
        """Self-contained HTML. Without JavaScript all pictures are shown, in a grid."""
        digest = hashlib.sha256(b"".join(self.pngs) + "".join(self.labels).encode())
        frames = "".join(
            f'<div class="ml-frame" role="group" aria-label="{html.escape(label)}">'
            f'<img alt="{html.escape(f"{self.alt} Here: {label}")}" '
            f'src="data:image/webp;base64,{base64.b64encode(webp(data)).decode()}" '
            f'width="{width}" height="{height}">'
            f'<div class="ml-label">{html.escape(label)}</div></div>'
            for data, label in zip(self.pngs, self.labels, strict=True)
            for width, height in [Image.open(io.BytesIO(data)).size]
        )
        caption = f"<figcaption>{html.escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            _SLIDER.replace("@ID@", "ml-" + digest.hexdigest()[:10])
            .replace("@NAME@", html.escape(self.name))
            .replace("@LAST@", str(len(self.pngs) - 1))
            .replace("@START@", str(self.start))
            .replace("@CAPTION@", caption)
            .replace("@FRAMES@", frames)
        )


def slider(
    images: Sequence[ArrayLike | Figure],
    labels: Sequence[str],
    alt: str,
    *,
    name: str = "rank",
    start: int = 0,
    caption: str = "",
    width: int | None = None,
) -> Slider:
    """Pictures made beforehand, and a slider that turns them over.

    ``images``: arrays (h, w) or (h, w, 3), uint8 or 0 … 1, or figures, which are closed.
    ``labels``: one line of text a picture, shown under it and read out. ``alt`` says what the
    pictures show. ``name`` stands beside the slider; ``start`` is the picture shown first;
    ``width`` in pixels scales arrays down. The HTML carries the pictures inside it: nothing is
    fetched. The arrow keys move the slider. Where scripts do not run, all pictures are shown.

    Raises ValueError where there is no picture, no alternative text, or no label for each picture.
    """
    if not len(images):
        raise ValueError("a slider needs at least one picture.")
    if len(images) != len(labels):
        raise ValueError(f"found {len(images)} pictures and {len(labels)} labels; give one each.")
    if not alt.strip():
        raise ValueError("give `alt`: one sentence for readers who cannot see the pictures.")
    if not 0 <= start < len(images):
        raise ValueError(f"start must lie between 0 and {len(images) - 1}, but is {start}.")
    pngs = [png(image, width) for image in images]
    for image in images:
        if isinstance(image, Figure):
            plt.close(image)
    return Slider(pngs, [str(label) for label in labels], alt, name, start, caption)


# The colours come from the page around the slider (the book's theme, or JupyterLab's); without
# either they are dark on white. The script runs once per copy, also if a cell is shown twice.
_SLIDER = """
<figure class="ml-slider" data-ml="@ID@">
<style>
.ml-slider{margin:1.2em 0;padding:.9em;border-radius:.5em;
 border:1px solid var(--pst-color-border,var(--jp-border-color2,#d0d7de));
 background:var(--pst-color-background,var(--jp-layout-color0,#fff));
 color:var(--pst-color-text-base,var(--jp-content-font-color1,#1f2328))}
.ml-slider .ml-frames{display:grid;gap:.8em;
 grid-template-columns:repeat(auto-fit,minmax(min(100%,14em),1fr))}
.ml-slider[data-ready] .ml-frames{display:block}
.ml-slider[data-ready] .ml-frame:not([data-on]){display:none}
.ml-slider .ml-frame img{display:block;width:100%;height:auto;margin:0;border-radius:.25em}
.ml-slider .ml-label{margin-top:.5em;text-align:start;font-variant-numeric:tabular-nums}
.ml-slider .ml-control{display:none;gap:.8em;align-items:center;margin-bottom:.7em}
.ml-slider[data-ready] .ml-control{display:flex}
.ml-slider .ml-control input{flex:1;min-width:0;height:2em;accent-color:#0072b2;cursor:pointer}
.ml-slider figcaption{margin-top:.6em;font-size:.92em}
</style>
<label class="ml-control"><span>@NAME@</span>
<input type="range" min="0" max="@LAST@" step="1" value="@START@"></label>
<div class="ml-frames">@FRAMES@</div>
@CAPTION@
<script>
for (const box of document.querySelectorAll('[data-ml="@ID@"]:not([data-ready])')) {
  const input = box.querySelector("input");
  const frames = Array.from(box.querySelectorAll(".ml-frame"));
  const show = () => frames.forEach((frame, i) => {
    const on = i === Number(input.value);
    frame.toggleAttribute("data-on", on);
    if (on) input.setAttribute("aria-valuetext", frame.getAttribute("aria-label"));
  });
  input.addEventListener("input", show);
  box.setAttribute("data-ready", "");
  show();
}
</script>
</figure>
"""
