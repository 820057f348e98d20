"""`vllm.multimodal`: pictures from URLs and to URLs, for scripts."""

import base64
import io
from typing import Any

from PIL import Image

from octavo.media.fetch import FetchPolicy, MediaFetcher

ANY_HOST = FetchPolicy(domains=("*",))


def fetch_image(image_url: str, **_: Any) -> Image.Image:
    """The picture at a URL (data:, http:, https:), as RGB. Raises InvalidRequestError where it cannot be had."""
    fetched = MediaFetcher(ANY_HOST).fetch(image_url)
    with Image.open(io.BytesIO(fetched)) as picture:
        return picture.convert("RGB")


def encode_image_url(image: Image.Image, *, image_mode: str = "RGB", format: str = "PNG") -> str:
    """A picture as a data: URL."""
    out = io.BytesIO()
    image.convert(image_mode).save(out, format)
    kind = Image.MIME.get(format.upper(), "image/png")
    return f"data:{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def convert_image_mode(image: Image.Image, to_mode: str) -> Image.Image:
    """A picture in another mode; what is transparent becomes white in RGB."""
    if image.mode == "RGBA" and to_mode == "RGB":
        white = Image.new("RGBA", image.size, (255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == to_mode else image.convert(to_mode)
