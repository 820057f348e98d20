"""What every family's processor is: how media and a prompt become features and a longer prompt."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from octavo.errors import CheckpointError, InvalidRequestError
from octavo.files import read_json
from octavo.media.feature import (
    Data,
    Embeddings,
    Item,
    MediaFeature,
    Option,
    Processed,
    Span,
    checked_options,
    content_digest,
    find_sequence,
    place,
)
from octavo.media.pictures import Picture
from octavo.media.pixels import BICUBIC, CLIP_MEAN, CLIP_STD, Values, crop_centre, resize, size_of, square, target_size
from octavo.media.sounds import Sound
from octavo.media.sources import Array
from octavo.media.vocabulary import Place, Vocabulary
from octavo.text.tokenizer import Tokenizer

KINDS = ("image", "video", "audio")
Config = Mapping[str, Any]
IMAGES: Mapping[str, int | None] = {"image": None}
ONE_IMAGE: Mapping[str, int | None] = {"image": 1}
ONE_VIDEO: Mapping[str, int | None] = {"video": 1}
IMAGES_AND_VIDEOS: Mapping[str, int | None] = {"image": None, "video": None}
AUDIOS: Mapping[str, int | None] = {"audio": None}
ONE_AUDIO: Mapping[str, int | None] = {"audio": 1}
NO_ROWS: frozenset[str] = frozenset()
IMAGE_ROWS, AUDIO_ROWS, IMAGE_AND_VIDEO_ROWS = frozenset({"image"}), frozenset({"audio"}), frozenset({"image", "video"})


@dataclass(frozen=True)
class ProcessorFiles:
    """A checkpoint's own words about its processor; empty where a file is missing."""

    config: Config
    """config.json, or params.json."""
    preprocessor: Config = field(default_factory=dict)
    """preprocessor_config.json."""
    processor: Config = field(default_factory=dict)
    """processor_config.json."""
    video: Config = field(default_factory=dict)
    """video_preprocessor_config.json, or that in the folder video_processor."""


def read_processor_files(folder: Path, config: Config) -> ProcessorFiles:
    """What processors need of a model's folder. Raises CheckpointError for one that is not readable JSON."""

    def read(*names: str) -> Config:
        return next((read_json(folder / name) for name in names if (folder / name).exists()), {})

    processor = read("processor_config.json")
    image = read("preprocessor_config.json") or processor.get("image_processor") or processor.get("feature_extractor")
    video = read("video_preprocessor_config.json", "video_processor/preprocessor_config.json")
    return ProcessorFiles(config, image or {}, processor, video or processor.get("video_processor") or {})


class Processor:
    """Makes features of media, and writes their tokens into a prompt. A family says what differs.

    Args:
        files: what the checkpoint says.
        tokenizer: the model's; families whose placeholders are text, or tokens by name, need it.
        limits: most items of a kind that a prompt may have, below what the family takes.

    Raises CheckpointError where the files lack or contradict what the family needs.
    """

    family: ClassVar[str]
    takes: ClassVar[Mapping[str, int | None]] = IMAGES
    """Kinds of media, and how many of each a prompt may have (None: any number)."""
    embeds: ClassVar[frozenset[str]] = NO_ROWS
    """Kinds that may also be given as their tower's rows."""
    options: ClassVar[tuple[Option, ...]] = ()
    """Settings that a request may change."""
    transcribes: ClassVar[bool] = False
    """Whether the model writes down what is said in sounds of any length, window by window: see `media/windows.py`."""
    lone_differs: ClassVar[bool] = False
    """Whether the only item of a prompt is processed in another way than one of several."""
    mean, std = CLIP_MEAN, CLIP_STD
    image_mark = video_mark = audio_mark = ""
    """How a prompt says where its {n}-th item belongs; where nothing does, items go where the family puts them."""

    def __init__(
        self, files: ProcessorFiles, tokenizer: Tokenizer | None = None, limits: Mapping[str, int] | None = None
    ) -> None:
        self.files, self.limits = files, dict(limits or {})
        self.vocabulary = Vocabulary(tokenizer)
        self.settings: dict[str, Any] = dict(files.preprocessor)
        self._changed: dict[str, Processor] = {}
        words = json.dumps([type(self).__name__, vars(files)], sort_keys=True, default=str)
        self._how = hashlib.blake2b(words.encode(), digest_size=32).digest()
        try:
            self.setup(files.config)
            self.values = Values(self.settings, self.mean, self.std)
            self._try()
        except CheckpointError:
            raise
        except Exception as error:  # whatever a value of the wrong kind leads to
            what = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"what the files say of {self.family}'s media cannot be used ({what:.200})."
            ) from error

    def _try(self) -> None:
        """Process a small item of each kind, so that what the files say is known to work before a request comes."""
        picture = Image.new("RGB", (56, 40))
        items: dict[str, Item] = {"image": picture, "video": np.zeros((2, 40, 56, 3), np.uint8)}
        items["audio"] = Sound(np.zeros(16000, np.float32), 16000)
        for kind in self.takes:
            if self.limits.get(kind) != 0:
                self._encode(kind, items[kind], 0, 1)

    def setting(self, name: str, default: Any = None) -> Any:
        """A value of preprocessor_config.json, or else of config.json."""
        return self.settings.get(name, self.files.config.get(name, default))

    # What families say

    def setup(self, config: Config) -> None:
        """Take from the files what processing needs."""

    def image(self, picture: Picture, index: int, count: int) -> tuple[Data, Span]:
        """What the tower reads of the picture, the `index`-th of `count` in its prompt, and its tokens."""
        raise NotImplementedError

    def video(self, frames: Array, index: int, count: int) -> tuple[Data, Span]:
        """The same of a film's frames."""
        raise NotImplementedError

    def audio(self, sound: Sound, index: int, count: int) -> tuple[Data, Span]:
        """The same of a sound."""
        raise NotImplementedError

    def rows(self, kind: str, item: Embeddings, index: int, count: int) -> Span:
        """The tokens of an item that came as rows."""
        return Span([self.token(kind)] * len(item.rows))

    def token(self, kind: str) -> int:
        """The placeholder token of a kind."""
        raise NotImplementedError

    def placeholders(self) -> frozenset[int]:
        """Tokens that stand for media, which need not be of the model's vocabulary."""
        return frozenset(self.token(kind) for kind in self.takes)

    def prepare(self, token_ids: list[int]) -> list[int]:
        """The prompt as it is when there are media, before they are written into it."""
        return token_ids

    def places(self, token_ids: list[int]) -> list[Place]:
        """Where items belong, in order: by default at the placeholder tokens."""
        kinds = {self.token(kind): kind for kind in self.takes}
        return [Place(kinds[t], i, i + 1) for i, t in enumerate(token_ids) if t in kinds]

    def finish(self, processed: Processed) -> Processed:
        """The last word: what depends on where all items are."""
        return processed

    @classmethod
    def both_ways(cls, tokens: int) -> list[tuple[int, int]]:
        """First place and end of the spans of a prompt, with media or without, in which every token sees all others."""
        return []

    def encode(self, text: str) -> list[int]:
        """The tokens of a prompt that is given as text, before media are written into it."""
        tokenizer = self.vocabulary.tokenizer
        if tokenizer is None:
            raise InvalidRequestError("without a tokenizer (skip_tokenizer_init), prompts must be token ids.")
        return tokenizer.encode(text)

    # What is the same for all

    def mark(self, kind: str, number: int = 1) -> str:
        """What stands in a prompt's text for the `number`-th item of a kind; empty where nothing does."""
        mark: str = getattr(self, f"{kind}_mark")
        return mark.format(n=number)

    def __call__(
        self,
        token_ids: Sequence[int],
        images: Sequence[Item] = (),
        videos: Sequence[Item] = (),
        audios: Sequence[Item] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Processed:
        """The prompt with its placeholders written out, and the features of its media.

        Raises InvalidRequestError for media that the model does not take, that its prompt has no place for, or that
        cannot be processed, and for options that it does not have.
        """
        if options:
            return self._with(options)(token_ids, images, videos, audios)
        items = dict(zip(KINDS, (images, videos, audios), strict=True))
        self._check_counts(items)
        if not any(items.values()):
            return Processed(list(token_ids), [])
        encoded = {kind: [self._encode(kind, x, i, len(xs)) for i, x in enumerate(xs)] for kind, xs in items.items()}
        return self.finish(self._written(list(token_ids), encoded) or self._write(list(token_ids), encoded))

    def standard(self, picture: Picture) -> Array:
        """The steps that most preprocessors consist of: resize, crop, rescale, normalize. (3, height, width)."""
        settings = self.settings
        if settings.get("do_resize", True):
            size = target_size(size_of(picture), settings["size"])
            picture = resize(picture, size, settings.get("resample", BICUBIC))
        if settings.get("do_center_crop", "crop_size" in settings):
            picture = crop_centre(picture, square(settings["crop_size"]))
        return self.values(picture)

    def _with(self, options: Mapping[str, Any]) -> "Processor":
        """This processor with other settings."""
        options = checked_options(options, self.options, self.family)
        key = json.dumps(options, sort_keys=True)
        if key not in self._changed:
            if len(self._changed) >= 16:
                self._changed.clear()
            video = {**self.files.video, **options} if self.files.video else {}
            preprocessor = {**self.files.preprocessor, **options}
            files = dataclasses.replace(self.files, preprocessor=preprocessor, video=video)
            self._changed[key] = type(self)(files, self.vocabulary.tokenizer, self.limits)
        return self._changed[key]

    @classmethod
    def check_count(cls, kind: str, count: int, limits: Mapping[str, int | None]) -> None:
        """Raises InvalidRequestError for a kind that the family does not take, and for more items than it may have."""
        if kind not in cls.takes:
            raise InvalidRequestError(f"{cls.family} takes no {kind}; it takes {' and '.join(cls.takes)}.")
        most = min(n for n in (cls.takes[kind], limits.get(kind), 1 << 30) if n is not None)
        if count > most:
            why = f"{cls.family} takes" if most == cls.takes[kind] else "limit_mm_per_prompt allows"
            raise InvalidRequestError(f"the prompt has {count} {kind} items; {why} {most} a prompt.")

    def _check_counts(self, items: Mapping[str, Sequence[Item]]) -> None:
        for kind, given in items.items():
            if not given:
                continue
            self.check_count(kind, len(given), self.limits)
            if any(isinstance(item, Embeddings) for item in given) and kind not in self.embeds:
                raise InvalidRequestError(f"{self.family} takes no embeddings for {kind}; give the {kind} itself.")

    def _encode(self, kind: str, item: Item, index: int, count: int) -> tuple[Data, Span, bytes]:
        digest = content_digest(item, kind, self._how, self.lone_differs and count == 1)
        if isinstance(item, Embeddings):
            data = {"embeddings": item.rows, **({"grid": np.array(item.grid)} if item.grid else {})}
            return data, self.rows(kind, item, index, count), digest
        data, span = getattr(self, kind)(item, index, count)
        return data, span, digest

    def _written(self, token_ids: list[int], encoded: Mapping[str, list[tuple[Data, Span, bytes]]]) -> Processed | None:
        """The prompt as it is, if every item's tokens are written out in it already, and no others."""
        features: list[MediaFeature] = []
        left = list(token_ids)
        for kind, items in encoded.items():
            start = 0
            for data, span, digest in items:
                start = find_sequence(token_ids, span.token_ids, start)
                if start < 0:
                    return None
                features.append(place(span, start, kind, data, digest))
                left[start : start + len(span.token_ids)] = [-1] * len(span.token_ids)
                start += len(span.token_ids)
        if any(p.stop > p.start for p in self.places([t for t in left if t >= 0])):
            return None
        return Processed(token_ids, sorted(features, key=lambda f: f.offset))

    def _write(self, token_ids: list[int], encoded: Mapping[str, list[tuple[Data, Span, bytes]]]) -> Processed:
        token_ids = self.prepare(token_ids)
        places = self.places(token_ids)
        self._check_places(places, encoded)
        written: list[int] = []
        features: list[MediaFeature] = []
        counts = dict.fromkeys(KINDS, 0)
        done = 0
        for spot in places:
            index = counts[spot.kind] if spot.index is None else spot.index
            counts[spot.kind] += 1
            data, span, digest = encoded[spot.kind][index]
            written += token_ids[done : spot.start] + spot.before
            features.append(place(span, len(written), spot.kind, data, digest))
            written += span.token_ids + spot.after
            done = spot.stop
        return Processed(written + token_ids[done:], features)

    def _check_places(self, places: list[Place], encoded: Mapping[str, list[tuple[Data, Span, bytes]]]) -> None:
        for kind, items in encoded.items():
            found = [p.index for p in places if p.kind == kind]
            numbered = [i for i in found if i is not None]
            if len(found) != len(items) or (numbered and sorted(numbered) != list(range(len(items)))):
                has = f"the prompt has {len(found)} places for {kind} items, and {len(items)} are given"
                raise InvalidRequestError(f"{has}. Write {self.mark(kind)!r} for each, or use the chat template.")
