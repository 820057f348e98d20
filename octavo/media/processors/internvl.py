"""InternVL2, Mono-InternVL, H2OVL and NVLM-D: square tiles of the nearest shape, and a thumbnail."""

from collections.abc import Sequence

from octavo.media.feature import Data, Embeddings, Option, Span
from octavo.media.limits import whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, IMAGENET_MEAN, IMAGENET_STD, cut, resize
from octavo.media.processor import IMAGE_ROWS, Config, Processor
from octavo.media.vocabulary import Place

Shape = tuple[int, int]
"""Tiles side by side, and above each other."""


def tile_shapes(least: int, most: int) -> list[Shape]:
    """All shapes of so many tiles, the fewest tiles first; their order decides between equally good ones."""
    counts = range(least, most + 1)
    found = {(i, j) for n in counts for i in range(1, n + 1) for j in range(1, n + 1) if least <= i * j <= most}
    return sorted(found, key=lambda shape: shape[0] * shape[1])


def nearest_shape(picture: Picture, shapes: Sequence[Shape], side: int) -> Shape:
    """The shape whose aspect ratio is nearest; of equals, a later one only if the picture fills half of it."""
    aspect, area = picture.width / picture.height, picture.width * picture.height
    best, least = (1, 1), float("inf")
    for shape in shapes:
        off = abs(aspect - shape[0] / shape[1])
        if off < least or (off == least and area > 0.5 * side * side * shape[0] * shape[1]):
            best, least = shape, off
    return best


class InternVLProcessor(Processor):
    """InternVLChatModel: pixel_values are (tiles, 3, side, side), the thumbnail last."""

    family = "InternVL"
    embeds = IMAGE_ROWS
    options = (
        Option("min_dynamic_patch", 1, 64),
        Option("max_dynamic_patch", 1, 64),
        Option("dynamic_image_size", False, True),
    )
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    image_mark = "<image>"
    start, context, end = "<img>", "<IMG_CONTEXT>", "</img>"

    def setup(self, config: Config) -> None:
        vision = config["vision_config"]
        self.side = whole(config.get("force_image_size") or vision["image_size"])
        self.tile_tokens = whole(
            int((self.side // vision["patch_size"]) ** 2 * config.get("downsample_ratio", 0.5) ** 2)
        )
        self.least = whole(self.setting("min_dynamic_patch", 1))
        self.most = whole(self.setting("max_dynamic_patch", 6))
        if not self.setting("dynamic_image_size", False):
            self.least = self.most = 1
        self.thumbnail = bool(config.get("use_thumbnail", False))
        self.ids = [self.vocabulary.id(name) for name in (self.start, self.context, self.end)]

    def token(self, kind: str) -> int:
        return self.ids[1]

    def places(self, token_ids: list[int]) -> list[Place]:
        return self.vocabulary.places_of("<image>", token_ids)

    def tiles(self, picture: Picture, shape: Shape, thumbnail: bool) -> list[Picture]:
        """A picture in tiles of this shape, and whole if there are several."""
        inner = resize(picture, (shape[1] * self.side, shape[0] * self.side), BICUBIC)
        tiles = cut(inner, (self.side, self.side))
        whole = [resize(picture, (self.side, self.side), BICUBIC)] if thumbnail and len(tiles) > 1 else []
        return tiles + whole

    def chosen_tiles(self, picture: Picture, count: int) -> list[Picture]:
        shape = nearest_shape(picture, tile_shapes(self.least, self.most), self.side)
        return self.tiles(picture, shape, self.thumbnail)

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        tiles = self.chosen_tiles(picture, count)
        return {"pixel_values": self.values.many(tiles)}, self.span(len(tiles) * self.tile_tokens)

    def rows(self, kind: str, item: Embeddings, index: int, count: int) -> Span:
        return self.span(len(item.rows))

    def span(self, rows: int) -> Span:
        start, context, end = self.ids
        return Span([start, *[context] * rows, end], context)


class H2OVLProcessor(InternVLProcessor):
    """H2OVLChatModel: with use_msac a lone picture is tiled twice, at two scales."""

    family = "H2OVL"
    lone_differs = True

    def setup(self, config: Config) -> None:
        super().setup(config)
        self.twice = bool(config.get("use_msac", False))

    def chosen_tiles(self, picture: Picture, count: int) -> list[Picture]:
        if not self.twice or count > 1:
            return super().chosen_tiles(picture, count)
        first = nearest_shape(picture, tile_shapes(self.least, self.most), self.side)
        others = [s for s in tile_shapes(3, self.most) if first[0] % s[0] and first[1] % s[1]]
        coarse = self.tiles(picture, first, True)
        fine = self.tiles(picture, nearest_shape(picture, others, self.side), True)
        return [*fine[:-1], *coarse[:-1], fine[-1]]


class NVLMProcessor(InternVLProcessor):
    """NVLM_D_Model: each tile's tokens come behind a tag that is plain text."""

    family = "NVLM-D"
    start, context, end = "<Image>", "<|vision_pad|>", "</Image>"

    def span(self, rows: int) -> Span:
        start, context, end = self.ids
        tiles = max(rows // self.tile_tokens, 1)
        ids = [start]
        for i in range(1, tiles + 1):
            tag = "<tile_global_thumbnail>" if i == tiles else f"<tile_{i}>"
            ids += [*self.vocabulary.encode(tag), *[context] * (rows // tiles)]
        return Span([*ids, end], context)
