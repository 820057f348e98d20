"""What is said in a sound, asked of an engine window by window; whoever runs the engine carries the questions there.

The order of things is that of openai-whisper's `transcribe`: a window begins where the last segment before it ends,
sees the text before it, and is tried again at a higher temperature where its text seems unsound.
"""

import math
import zlib
from collections.abc import Generator
from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.features import Feature
from octavo.loading.model_info import ModelInfo
from octavo.lora import AdapterRef, LoRARequest
from octavo.media.limits import MediaLimits
from octavo.media.model_media import feature_of
from octavo.media.speech_tokens import SpeechTokens
from octavo.media.windows import LONG_SOUNDS, SoundWindows
from octavo.outputs import CompletionOutput
from octavo.params import RequestOutputKind, SamplingParams
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.inputs import InputChecker
from octavo.transcripts import Transcript, TranscriptionParams, TranscriptRule, TranscriptSegment

KEEP_TEXT_BELOW = 0.5
"""A window that needed a higher temperature, and those before it, are not shown to the next one."""


@dataclass(frozen=True)
class Question:
    """What an engine is asked: one answer, whose text is not made."""

    prompt: CheckedPrompt
    params: SamplingParams


Asking = Generator[list[Question], list[CompletionOutput], None]
"""Gives questions, and takes their answers in the same order."""


def proceed(asking: Asking, answers: list[CompletionOutput] | None) -> list[Question] | None:
    """What is asked next, after the answers (None: to begin); None for nothing more."""
    try:
        return next(asking) if answers is None else asking.send(answers)
    except StopIteration:
        return None


class Transcriber:
    """Makes transcriptions by a model.

    Args:
        info: of the model.
        checker: checks what it is asked.

    Raises InvalidRequestError for a model that does not transcribe, CheckpointError where its files lack tokens.
    """

    def __init__(self, info: ModelInfo, checker: InputChecker) -> None:
        media, tokenizer = checker.media, checker.tokenizer
        if info.task != "generate" or media is None or not media.transcribes:
            raise InvalidRequestError("this model does not transcribe sounds. Take a Whisper model.")
        if tokenizer is None:
            raise InvalidRequestError("transcripts need a tokenizer, and skip_tokenizer_init=True loads none.")
        self.info, self.checker, self.media, self.tokenizer = info, checker, media, tokenizer
        self.tokens = SpeechTokens(tokenizer, info.generation_config, media.info.config, info.vocab_size)

    def text(self, token_ids: list[int]) -> str:
        """The text of tokens, without times and other marks."""
        return self.tokenizer.decode(self.tokens.text_ids(token_ids))

    def begin(
        self,
        sound: object,
        params: TranscriptionParams,
        adapter: LoRARequest | None = None,
        limits: MediaLimits = LONG_SOUNDS,
        name: str = "the sound",
    ) -> "Transcription":
        """A transcription of a sound (see `decode_sound`), which is decoded here.

        Raises InvalidRequestError for what cannot be transcribed so.
        """
        self.check(params)
        ref = None if adapter is None else self.checker.adapter(adapter)
        return Transcription(self, self.media.windows(sound, limits, name), params, ref)

    def check(self, params: TranscriptionParams) -> None:
        """Raises InvalidRequestError for what this model does not have."""
        self.tokens.language(params.language)
        self.tokens.check_task(params.task)
        for temperature in params.temperatures:
            self.checker.sampling(self.sampling(params, temperature, 0))

    def sampling(self, params: TranscriptionParams, temperature: float, attempt: int) -> SamplingParams:
        """How a window's tokens are chosen."""
        return SamplingParams(
            temperature=temperature,
            top_p=params.top_p,
            top_k=params.top_k,
            min_p=params.min_p,
            seed=None if params.seed is None else params.seed + attempt,
            repetition_penalty=params.repetition_penalty,
            frequency_penalty=params.frequency_penalty,
            presence_penalty=params.presence_penalty,
            max_tokens=params.max_tokens,
            transcript=self.tokens.rule(params.timestamps),
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


@dataclass(frozen=True)
class _Window:
    """What was written of a window."""

    tokens: list[int]
    """Without the end."""
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class Transcription:
    """One sound on its way to a transcript."""

    def __init__(
        self, transcriber: Transcriber, sound: SoundWindows, params: TranscriptionParams, adapter: AdapterRef | None
    ) -> None:
        self.transcriber, self.sound, self.params, self.adapter = transcriber, sound, params, adapter
        self.segments: list[TranscriptSegment] = []
        self.language = transcriber.tokens.language(params.language)
        """Its code, as soon as it is known."""
        self.seek = 0
        """The first frame that is not transcribed yet."""
        self.num_prompt_tokens = self.num_generated_tokens = 0
        self._attempts = 0
        self._feature: tuple[int, Feature] | None = None
        """Of the window that begins at a frame."""
        # Half of the positions, less one, are for what came before.
        self._room = transcriber.info.max_model_len // 2 - 1
        given = (params.prompt or "").strip()[-max(1, self._room) * transcriber.tokenizer.longest_token :]
        self._before = transcriber.tokenizer.encode(" " + given, add_special_tokens=False) if given else []
        """Tokens that the next window sees before its own."""

    @property
    def seconds(self) -> float:
        """How much of the sound is transcribed."""
        return min(self.seek, self.sound.num_frames) * self.sound.frame_seconds

    def transcript(self) -> Transcript:
        """What there is so far."""
        text = "".join(segment.text for segment in self.segments).strip()
        return Transcript(
            text,
            self.language or "en",
            self.params.task,
            self.sound.duration,
            self.segments,
            self.num_prompt_tokens,
            self.num_generated_tokens,
        )

    def run(self) -> Asking:
        """Asks until all is transcribed; `segments` grows meanwhile."""
        if self.language is None:
            (answer,) = yield [self._question([self.transcriber.tokens.start], self._one_of_languages())]
            self._count(answer, 1)
            codes = {i: code for code, i in self.transcriber.tokens.languages.items()}
            self.language = codes[answer.token_ids[0]]
        while self.seek < self.sound.num_frames:
            window = yield from self._window()
            if self._is_silent(window):
                self.seek += self._window_frames
                continue
            self._take(window)

    @property
    def _window_frames(self) -> int:
        """Frames of the sound in the window that begins now."""
        return min(self.sound.window, self.sound.num_frames - self.seek)

    def _question(self, token_ids: list[int], params: SamplingParams) -> Question:
        if self._feature is None or self._feature[0] != self.seek:
            feature = feature_of(self.sound.at(self.seek))
            self._feature = self.seek, feature if self.adapter is None else feature.under(self.adapter.digest)
        prompt = CheckedPrompt(None, token_ids, features=[self._feature[1]], adapter=self.adapter)
        return Question(prompt, params)

    def _one_of(self, token_ids: list[int]) -> SamplingParams:
        """One of these tokens, the likeliest, with its log-probability among all."""
        return SamplingParams(
            temperature=0,
            max_tokens=1,
            allowed_token_ids=token_ids,
            transcript=TranscriptRule(),  # whatever the engine's logprobs_mode
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _one_of_languages(self) -> SamplingParams:
        return self._one_of(sorted(self.transcriber.tokens.languages.values()))

    def _count(self, answer: CompletionOutput, num_prompt_tokens: int) -> None:
        self.num_prompt_tokens += num_prompt_tokens
        self.num_generated_tokens += len(answer.token_ids)

    def _window(self) -> Generator[list[Question], list[CompletionOutput], _Window]:
        """What is written of the window that begins now, at the first temperature at which it seems sound."""
        tokens, params = self.transcriber.tokens, self.params
        before = [tokens.previous, *self._before[-self._room :]] if self._before and self._room > 0 else []
        prompt = before + tokens.prompt(self.language or "en", params.task, params.timestamps)
        # How probable silence is, the model says where the transcript would begin.
        begun = self._question([*before, tokens.start], self._one_of([tokens.no_speech]))
        silence: float | None = None
        for temperature in params.temperatures:
            asked = [self._question(prompt, self.transcriber.sampling(params, temperature, self._attempts))]
            self._attempts += 1
            answers = yield asked if silence is not None else [*asked, begun]
            self._count(answers[0], len(prompt))
            if silence is None:
                self._count(answers[1], len(before) + 1)
                silence = probability(answers[1])
            window = self._written(answers[0], temperature, silence)
            if not self._is_unsound(window):
                break
        return window

    def _written(self, answer: CompletionOutput, temperature: float, silence: float) -> _Window:
        tokens = answer.token_ids
        mean = (answer.cumulative_logprob or 0.0) / max(1, len(tokens))
        tokens = tokens[:-1] if tokens[-1:] == [self.transcriber.tokens.end] else tokens
        return _Window(tokens, temperature, mean, compression_ratio(self.transcriber.text(tokens)), silence)

    def _is_unsound(self, window: _Window) -> bool:
        """Whether the next temperature is to be tried."""
        params = self.params
        repeats, least = params.compression_ratio_threshold, params.logprob_threshold
        if least is not None and window.avg_logprob < least:
            return not self._seems_silent(window)
        return repeats is not None and window.compression_ratio > repeats

    def _seems_silent(self, window: _Window) -> bool:
        most = self.params.no_speech_threshold
        return most is not None and window.no_speech_prob > most

    def _is_silent(self, window: _Window) -> bool:
        """Whether nothing is said in it, whatever was written."""
        least = self.params.logprob_threshold
        return self._seems_silent(window) and (least is None or window.avg_logprob <= least)

    def _take(self, window: _Window) -> None:
        """Add a window's segments, and go on where they end."""
        first = self.transcriber.tokens.timestamps if self.params.timestamps else self.transcriber.info.vocab_size
        pieces, frames = split_at_times(window.tokens, first, self._window_frames, self.sound.frames_per_row)
        offset = self.seek * self.sound.frame_seconds
        row_seconds = self.sound.frames_per_row * self.sound.frame_seconds
        for piece in pieces:
            text = self.transcriber.text(piece.tokens)
            if piece.start >= piece.end or not text.strip():
                continue  # a moment, or nothing that was said
            self.segments.append(
                TranscriptSegment(
                    len(self.segments),
                    self.seek,
                    round(offset + piece.start * row_seconds, 3),
                    round(offset + piece.end * row_seconds, 3),
                    text,
                    piece.tokens,
                    window.temperature,
                    window.avg_logprob,
                    window.compression_ratio,
                    window.no_speech_prob,
                )
            )
            self._before += piece.tokens
        if not self.params.condition_on_previous_text or window.temperature > KEEP_TEXT_BELOW:
            self._before = []
        self.seek += frames


@dataclass(frozen=True)
class Piece:
    """Tokens of a window that are a segment, from one time to another, in the encoder's rows."""

    tokens: list[int]
    start: float
    end: float


def split_at_times(tokens: list[int], timestamps: int, num_frames: int, frames_per_row: int) -> tuple[list[Piece], int]:
    """A window's segments, and after how many frames the next window begins.

    Args:
        tokens: what was written, without the end.
        timestamps: the first timestamp's id.
        num_frames: of the sound in this window.
        frames_per_row: from one time to the next.

    Between two segments stand two timestamps. What comes after the last pair is left out, since the next window begins
    there; unless one timestamp ends it, for then nothing is said after that one.
    """
    is_time = [token >= timestamps for token in tokens]
    cuts = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
    ends_with_one = is_time[-2:] == [False, True]
    if not cuts:
        told = [token - timestamps for token in tokens if token >= timestamps]
        end = told[-1] if told and told[-1] > 0 else num_frames / frames_per_row
        return [Piece(tokens, 0, end)], num_frames
    if ends_with_one:
        cuts.append(len(tokens))
    pieces, first = list[Piece](), 0
    for cut in cuts:
        part = tokens[first:cut]
        pieces.append(Piece(part, part[0] - timestamps, part[-1] - timestamps))
        first = cut
    if ends_with_one:
        return pieces, num_frames
    return pieces, int(pieces[-1].end) * frames_per_row or num_frames


def probability(answer: CompletionOutput) -> float:
    """Of the one token that an answer has."""
    return math.exp(answer.cumulative_logprob or 0.0)


def compression_ratio(text: str) -> float:
    """How many times smaller zlib makes a text: much, where it repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
