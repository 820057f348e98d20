"""The media of a model: what it takes, as plain data, and prompts with media made into tokens and features."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from octavo.errors import CheckpointError, ConfigError, InvalidRequestError, shorten
from octavo.features import Feature, Positions
from octavo.media.feature import Embeddings, Item, MediaFeature, Processed, checked_options, pack
from octavo.media.films import frame_sampling
from octavo.media.items import KINDS, check_kinds, count_items, read_media
from octavo.media.limits import DEFAULT_LIMITS, MediaLimits
from octavo.media.processor import Processor, ProcessorFiles
from octavo.media.sounds import decode_sound
from octavo.media.windows import LONG_SOUNDS, HearsWindows, SoundWindows
from octavo.text.tokenizer import Tokenizer


class MediaInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All that a process must know to make features of a model's media."""

    processor: str
    """Its class, as module:name."""
    takes: dict[str, int | None]
    """Kinds of media (image, video, audio), and how many of each a prompt may have (None: any number)."""
    embeds: list[str] = []
    """Kinds that may also be given as their tower's rows."""
    config: dict[str, Any] = {}
    """config.json, and what else of the checkpoint's files processors read (see ProcessorFiles)."""
    preprocessor_config: dict[str, Any] = {}
    processor_config: dict[str, Any] = {}
    video_config: dict[str, Any] = {}
    options: dict[str, Any] = {}
    """mm_processor_kwargs of all prompts; a prompt's own go before them."""
    io_options: dict[str, dict[str, Any]] = {}
    """media_io_kwargs, by kind."""
    hidden_size: int | None = None
    """Values of a row that is given in place of an item; None for any number."""

    @property
    def open_kinds(self) -> list[str]:
        """The kinds that a prompt may have here."""
        return [kind for kind, most in self.takes.items() if most != 0]


def describe_media(
    made: type[Processor],
    files: ProcessorFiles,
    limits: Mapping[str, int],
    options: Mapping[str, Any],
    io_options: Mapping[str, Mapping[str, Any]],
    hidden_size: int | None = None,
) -> MediaInfo:
    """A model's media as plain data.

    Args:
        made: the family's processor.
        files: what the checkpoint says.
        limits, options, io_options: limit_mm_per_prompt, mm_processor_kwargs, media_io_kwargs.
        hidden_size: the text model's.

    Raises ConfigError for options that the family does not have.
    """
    try:
        checked_options(options, made.options, made.family)
        frame_sampling(io_options.get("video", {}))
    except InvalidRequestError as error:
        raise ConfigError(str(error)) from error
    takes = {
        kind: min((n for n in (most, limits.get(kind)) if n is not None), default=None)
        for kind, most in made.takes.items()
    }
    return MediaInfo(
        processor=f"{made.__module__}:{made.__qualname__}",
        takes=takes,
        embeds=sorted(made.embeds),
        config=dict(files.config),
        preprocessor_config=dict(files.preprocessor),
        processor_config=dict(files.processor),
        video_config=dict(files.video),
        options=dict(options),
        io_options={kind: dict(values) for kind, values in io_options.items()},
        hidden_size=hidden_size,
    )


class ModelMedia:
    """Makes features of a model's media.

    Args:
        info: what the model takes.
        tokenizer: the model's; None with skip_tokenizer_init.
        limits: how much an item may be.

    Raises CheckpointError where the checkpoint's files lack or contradict what the family needs.
    """

    def __init__(
        self, info: MediaInfo, tokenizer: Tokenizer | None = None, limits: MediaLimits = DEFAULT_LIMITS
    ) -> None:
        self.info, self.limits = info, limits
        self._class: type[Processor] = _processor_class(info.processor)
        self._processor: Processor | None = None
        self._lacking = ""
        try:
            self._processor = self._make(tokenizer)
        except CheckpointError as error:
            if tokenizer is not None and info.open_kinds:
                raise
            self._lacking = str(error)  # prompts of token ids, or of text, can be served all the same

    def _make(self, tokenizer: Tokenizer | None) -> Processor:
        info = self.info
        files = ProcessorFiles(
            info.config, {**info.preprocessor_config, **info.options}, info.processor_config, info.video_config
        )
        limits = {kind: most for kind, most in info.takes.items() if most is not None}
        return self._class(files, tokenizer, limits)

    def encode(self, text: str) -> list[int] | None:
        """The tokens of a prompt's text by the family's rule; None where there is no processor that knows it."""
        return None if self._processor is None else self._processor.encode(text)

    def mark(self, kind: str, number: int = 1) -> str:
        """What stands in a prompt's text for the `number`-th item of a kind; empty where nothing does."""
        return "" if self._processor is None else self._processor.mark(kind, number)

    @property
    def placeholders(self) -> frozenset[int]:
        """Tokens that stand in a prompt for media, which need not be of the model's vocabulary."""
        return frozenset() if self._processor is None else self._processor.placeholders()

    def both_ways(self, tokens: int) -> list[tuple[int, int]]:
        """Spans of a prompt of so many tokens in which every token sees all others."""
        return self._class.both_ways(tokens)

    @property
    def transcribes(self) -> bool:
        """Whether the model writes down what is said in sounds of any length."""
        return self._class.transcribes and self.info.takes.get("audio") != 0

    def windows(self, sound: object, limits: MediaLimits = LONG_SOUNDS, name: str = "the sound") -> SoundWindows:
        """A sound of any length (see `decode_sound`) as a model that transcribes hears it, decoded here.

        Raises InvalidRequestError for what cannot be read, and where the model does not transcribe.
        """
        processor = self._ready()
        if not self.transcribes or not isinstance(processor, HearsWindows):
            raise InvalidRequestError(f"{processor.family} does not transcribe sounds here. Take a Whisper model.")
        return processor.windows(decode_sound(sound, limits, name, processor.sampling_rate))

    def check(self, data: Mapping[str, Any]) -> None:
        """Refuse, before anything is decoded, kinds that the model does not take and too many items."""
        check_kinds(data)
        for kind, value in data.items():
            if count := count_items(kind, value):
                self._class.check_count(kind, count, self.info.takes)

    def process(
        self,
        token_ids: Sequence[int],
        data: Mapping[str, Any],
        options: Mapping[str, Any] | None = None,
        io_options: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> Processed:
        """A prompt with its placeholders written out, and the features of its media, decoded here.

        Args:
            token_ids: the prompt.
            data: `multi_modal_data`, as `read_media` takes it.
            options: `mm_processor_kwargs` of the prompt.
            io_options: its `media_io_kwargs`.

        Raises InvalidRequestError for media that the model does not take, or that cannot be read.
        """
        self.check(data)
        reading = {kind: {**self.info.io_options.get(kind, {}), **(io_options or {}).get(kind, {})} for kind in KINDS}
        items = read_media(data, reading, self.limits)
        for kind, given in zip(KINDS, (items.images, items.videos, items.audios), strict=True):
            self._check_rows(kind, given)
        return self._ready()(token_ids, items.images, items.videos, items.audios, options)

    def _check_rows(self, kind: str, items: Sequence[Item]) -> None:
        for item in items:
            size = item.rows.shape[1] if isinstance(item, Embeddings) else None
            if size is not None and self.info.hidden_size not in (None, size):
                raise InvalidRequestError(
                    f"{kind} has embeddings of {size} values, and this model's have {self.info.hidden_size}."
                )

    def _ready(self) -> Processor:
        if self._processor is None:
            raise InvalidRequestError(self._lacking)
        return self._processor


def _processor_class(name: str) -> type[Processor]:
    """The class that MediaInfo.processor names. Raises CheckpointError for what is no processor of Octavo's."""
    module, _, attribute = name.partition(":")
    made: Any = getattr(importlib.import_module(module), attribute, None)
    if not (isinstance(made, type) and issubclass(made, Processor)):
        raise CheckpointError(f"{shorten(name)} is no processor of media.")
    return made


def feature_of(media: MediaFeature) -> Feature:
    """A processor's feature as plain data, for the engine and the executor."""
    crosses = media.visible is not None
    return Feature(
        media.kind,
        pack(media.data),
        media.cross_rows if crosses else media.length,
        media.digest,
        None if crosses else media.offset,
        None if media.takes is None else media.takes.astype(bool).tobytes(),
        media.visible,
    )


def positions_of(processed: Processed) -> Positions | None:
    """A processed prompt's positions as plain data."""
    if processed.positions is None:
        return None
    return Positions(len(processed.positions), processed.positions.astype("<i8").tobytes())
