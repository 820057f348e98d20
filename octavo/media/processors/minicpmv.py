"""MiniCPM-V 2.0, 2.5 and 2.6: the whole picture, then its slices, all of about the same area."""

import math
from collections.abc import Sequence

import numpy as np

from octavo.errors import InvalidRequestError
from octavo.media.feature import Data, Embeddings, Option, Span
from octavo.media.limits import whole
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, Size, cut, patches, resize, size_of
from octavo.media.processor import IMAGE_ROWS, Config, Processor
from octavo.media.sources import Array
from octavo.media.vocabulary import Place


def _multiple(length: float, of: int) -> int:
    return max(round(length / of) * of, of)


def whole_size(size: tuple[float, float], area_edge: int, patch: int, enlarge: bool) -> Size:
    """A size of whole patches, with the area of a square of `area_edge`; smaller pictures only if they are enlarged."""
    height, width = size
    if enlarge or width * height > area_edge * area_edge:
        aspect = width / height
        height = int(area_edge / math.sqrt(aspect))
        width = int(height * aspect)
    return _multiple(height, patch), _multiple(width, patch)


def slice_grid(size: Size, most: int, area_edge: int) -> Size | None:
    """Rows and columns of slices; None where the picture is not cut."""
    height, width = size
    multiple = min(math.ceil(width * height / (area_edge * area_edge)), most)
    if multiple <= 1:
        return None
    counts = [n for n in (multiple - 1, multiple, multiple + 1) if 1 < n <= most]
    grids = [(n // columns, columns) for n in counts for columns in range(1, n + 1) if n % columns == 0]
    wanted = math.log(width / height)
    return min(grids, key=lambda grid: abs(wanted - math.log(grid[1] / grid[0])), default=(1, 1))


def version_of(config: Config) -> float:
    """The version that config.json says, or else that its keys are of. Raises ValueError for one that is no number."""
    return float(config.get("version") or (2.5 if "slice_config" in config else 2.0))


class MiniCPMVProcessor(Processor):
    """MiniCPMV: source is (1, ...) for the whole picture, slices (slices, ...), all of one size.

    In 2.0 they are pixels (3, height, width), later patches side by side, (3, patch, patches * patch), with tgt_sizes
    (rows, columns) of each, the source's first.
    """

    family = "MiniCPM-V"
    embeds = IMAGE_ROWS
    options = (
        Option("max_slice_nums", 1, 64),
        Option("use_image_id", False, True),
    )
    mean = std = (0.5, 0.5, 0.5)
    image_mark = "(<image>./</image>)"

    def setup(self, config: Config) -> None:
        settings, slices = self.settings, config.get("slice_config") or config
        self.version = float(settings.get("version", version_of(config)))
        self.most = whole(settings.get("max_slice_nums") or slices.get("max_slice_nums", 9))
        self.sliced = bool(self.setting("slice_mode", True))
        self.edge, self.patch = whole(self.setting("scale_resolution", 448)), whole(self.setting("patch_size", 14))
        self.queries = whole(config.get("query_num") or settings.get("image_feature_size", 64))
        settings["image_mean"], settings["image_std"] = (settings.get(f"norm_{x}", self.mean) for x in ("mean", "std"))
        names = ("unk", "im_start", "im_end", "slice_start", "slice_end", "im_id_start", "im_id_end")
        spelled = ("<unk>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>")
        words = [settings.get(name, default) for name, default in zip(names, spelled, strict=True)]
        self.unknown, *self.brackets = map(self.vocabulary.id, words[:5])
        self.ids = [self.vocabulary.id(word) for word in words[5:]] if self.version >= 2.6 else None
        self.numbered = bool(settings.get("use_image_id", False))

    def token(self, kind: str) -> int:
        return self.unknown

    def places(self, token_ids: list[int]) -> list[Place]:
        return self.vocabulary.places_of(r"\(<image>\./</image>\)", token_ids)

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        size = size_of(picture)
        grid = slice_grid(size, self.most, self.edge) if self.sliced else None
        if self.sliced:
            source = resize(picture, whole_size(size, self.edge, self.patch, enlarge=grid is None), BICUBIC)
        elif self.version < 2.5:  # its tower fills the last patches up
            source = picture
        else:  # what is no whole patch at the right and at the bottom is not seen
            source = picture.crop((0, 0, picture.width // self.patch * self.patch, size[0] // self.patch * self.patch))
        data, targets = {"source": self._laid_out([source])}, [size_of(source)]
        if grid is not None:
            cells = _multiple(size[0], grid[0]) / grid[0], _multiple(size[1], grid[1]) / grid[1]
            height, width = whole_size(cells, self.edge, self.patch, enlarge=True)
            slices = cut(resize(picture, (height * grid[0], width * grid[1]), BICUBIC), (height, width))
            data["slices"] = self._laid_out(slices)
            targets += [(height, width)] * len(slices)
        if self.version >= 2.5:
            data["tgt_sizes"] = np.array(targets) // self.patch
        return data, self.span(grid, index)

    def _laid_out(self, pictures: Sequence[Picture]) -> Array:
        pixels = self.values.many(list(pictures))
        if self.version < 2.5:
            return pixels
        rows = [patches(one, self.patch).transpose(2, 3, 0, 1, 4) for one in pixels]
        return np.stack([row.reshape(3, self.patch, -1) for row in rows])

    def span(self, grid: Size | None, index: int) -> Span:
        """The source's tokens, and those of the slices row by row."""
        start, end, first, last = self.brackets
        queries, newline = [self.unknown] * self.queries, self.vocabulary.encode("\n")
        ids = [start, *queries, end]
        if self.ids is not None and self.numbered:
            ids = [self.ids[0], *self.vocabulary.encode(str(index)), self.ids[1], *ids]
        if grid is not None:
            one = [first, *queries, last] if self.version >= 2.6 else [start, *queries, end]
            rows = [*[*one * grid[1], *newline] * grid[0]][: -len(newline) or None]
            ids += rows if self.version >= 2.6 else [first, *rows, last]
        return Span(ids + (newline if self.version < 2.5 else []), self.unknown)

    def rows(self, kind: str, item: Embeddings, index: int, count: int) -> Span:
        grid = slice_grid((item.grid[0], item.grid[1]), self.most, self.edge) if item.grid else None
        pictures = 1 + (grid[0] * grid[1] if grid else 0)
        if len(item.rows) != pictures * self.queries:
            given = f"image {index + 1} has {len(item.rows)} rows where {pictures * self.queries} are needed"
            raise InvalidRequestError(f"{given}. Give image_sizes, the picture's height and width, beside them.")
        return self.span(grid, index)
