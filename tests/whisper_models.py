"""Tiny Whispers of random weights, in the published format, which hear two seconds at once."""

import json
from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
NAMES = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|fr|>", "<|translate|>", "<|transcribe|>"]
NAMES += ["<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
IDS = {name: 256 + i for i, name in enumerate(NAMES)}
END, START, NO_TIMESTAMPS = IDS["<|endoftext|>"], IDS["<|startoftranscript|>"], IDS["<|notimestamps|>"]
TIMES = NO_TIMESTAMPS + 1
POSITIONS = 100
"""Rows of the encoder: two seconds."""
VOCABULARY = TIMES + POSITIONS + 1


def unprintable() -> list[int]:
    """Tokens that are whitespace, or no character by themselves."""
    from tokenizers import pre_tokenizers

    # Printable bytes stand for themselves in that alphabet.
    return [i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet())) if not "!" <= c <= "~"]


def generation_config(multilingual: bool) -> dict[str, Any]:
    config: dict[str, Any] = {
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "pad_token_id": END,
        "bos_token_id": END,
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "prev_sot_token_id": IDS["<|startofprev|>"],
        "max_initial_timestamp_index": 10,
        "is_multilingual": multilingual,
        "suppress_tokens": [*unprintable(), *(IDS[name] for name in NAMES[1:-1])],
        "begin_suppress_tokens": [2, END],
        "max_length": 64,
        "return_timestamps": False,
    }
    if multilingual:
        config["lang_to_id"] = {name: IDS[name] for name in ("<|en|>", "<|de|>", "<|fr|>")}
        config["task_to_id"] = {name: IDS[f"<|{name}|>"] for name in ("translate", "transcribe")}
    return config


def write_tokenizer(folder: Path) -> None:
    """Of bytes, and of the marks; in files as they are published the times are no special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(NAMES)
    inner.add_tokens([f"<|{i * 0.02:.2f}|>" for i in range(POSITIONS + 1)])
    around = TemplateProcessing(
        single="<|startoftranscript|> <|notimestamps|> $A <|endoftext|>",
        special_tokens=[(name, IDS[name]) for name in (NAMES[1], NAMES[-1], NAMES[0])],
    )
    inner.post_processor = Sequence([ByteLevel(trim_offsets=False), around])
    inner.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": NAMES[0], "bos_token": NAMES[0], "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_whisper(folder: Path, multilingual: bool = True, seed: int = 0, scale: float = 0.3) -> Path:
    """A model folder. The same arguments give the same weights."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=40,
        num_mel_bins=16,
        max_source_positions=POSITIONS,
        max_target_positions=64,
        decoder_start_token_id=START,
        eos_token_id=END,
        pad_token_id=END,
        bos_token_id=END,
        init_std=scale,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    model = WhisperForConditionalGeneration(config)
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation_config(multilingual)))
    window = {"chunk_length": 2, "feature_size": 16, "hop_length": 160, "n_fft": 400, "sampling_rate": RATE}
    extractor = {"feature_extractor_type": "WhisperFeatureExtractor", "padding_value": 0.0, "padding_side": "right"}
    (folder / "preprocessor_config.json").write_text(json.dumps({**window, **extractor}))
    write_tokenizer(folder)
    return folder


def tones(seconds: float, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """A sound that changes every tenth of a second, so that no two windows are alike."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pieces = (time * 10).astype(int)
    pitches, levels = rng.uniform(100, 4000, pieces[-1] + 1), rng.uniform(0.05, 0.8, pieces[-1] + 1)
    noise = rng.normal(0, 0.01, len(time))
    return (levels[pieces] * np.sin(2 * np.pi * pitches[pieces] * time) + noise).astype(np.float32)
