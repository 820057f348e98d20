"""Transcripts as files that others read: plain text, subtitles (SubRip, WebVTT), tables, JSON."""

import dataclasses
from typing import Any

from octavo.text.languages import LANGUAGES
from octavo.transcripts import Transcript, TranscriptSegment


def as_srt(transcript: Transcript) -> str:
    """SubRip."""
    cues = (f"{i}\n{_span(s, ',', True)}\n{_line(s)}\n\n" for i, s in enumerate(transcript.segments, 1))
    return "".join(cues)


def as_vtt(transcript: Transcript) -> str:
    """WebVTT."""
    return "WEBVTT\n\n" + "".join(f"{_span(s, '.', False)}\n{_line(s)}\n\n" for s in transcript.segments)


def as_tsv(transcript: Transcript) -> str:
    """A line for each segment: milliseconds of its start and end, and its text."""
    rows = (
        f"{round(s.start * 1000)}\t{round(s.end * 1000)}\t{' '.join(s.text.split())}\n" for s in transcript.segments
    )
    return "start\tend\ttext\n" + "".join(rows)


def as_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def as_verbose(transcript: Transcript) -> dict[str, Any]:
    """The values of OpenAI's verbose_json."""
    return {
        "task": transcript.task,
        "language": LANGUAGES.get(transcript.language, transcript.language),
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "segments": [dataclasses.asdict(segment) for segment in transcript.segments],
    }


def _span(segment: TranscriptSegment, point: str, has_hours: bool) -> str:
    return f"{_clock(segment.start, point, has_hours)} --> {_clock(segment.end, point, has_hours)}"


def _clock(seconds: float, point: str, has_hours: bool) -> str:
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    begins = f"{hours:02}:" if has_hours or hours else ""
    return f"{begins}{minutes:02}:{rest:02}{point}{thousandths:03}"


def _line(segment: TranscriptSegment) -> str:
    """A cue's text in one line; no line of it can be taken for a span."""
    return " ".join(segment.text.split()).replace("-->", "->")
