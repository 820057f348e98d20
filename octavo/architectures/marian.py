"""Translators of BART's layers with computed positions: Marian (Junczys-Dowmunt et al. 2018), Pegasus, M2M-100."""

import math
from functools import partial

import torch
from torch import Tensor

from octavo.architectures.bart import token_table, translator
from octavo.architectures.bart_names import NAMES
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, FixedPositions, Names, PostNorm, PreNorm, Wiring

WEIGHTS = ("weight", "weights")
TOKENS = {"model.{shared|encoder.embed_tokens|decoder.embed_tokens}": "embed.tokens"}
SHARED = Names(
    {**NAMES.replacing(TOKENS).table, **TOKENS},
    # Computed here; transformers' older files have them.
    ignored=tuple(f"model.{side}.embed_positions.{name}" for side in ("encoder", "decoder") for name in WEIGHTS),
    prefix="model.",
)
APART = SHARED.replacing({"model.decoder.embed_tokens": "embed.tokens"}).extended(
    {"model.encoder.embed_tokens": "encoder.embed.tokens"}
)


def waves(positions: int, size: int) -> Tensor:
    """`[positions, size]`: sines, then cosines, of frequencies from 1 down to nearly 1 / 10000 (Marian, Pegasus)."""
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size)
    angles = torch.arange(positions, dtype=torch.float64, device="cpu").unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()[:, : size // 2]], 1).float()


def waves_to_the_end(positions: int, size: int, first: int) -> Tensor:
    """The same from position `first` on, of frequencies down to 1 / 10000 itself, in float32 (M2M-100)."""
    step = math.log(10000) / (size // 2 - 1)
    frequencies = torch.exp(torch.arange(size // 2, device="cpu").float() * -step)
    angles = torch.arange(first, first + positions, device="cpu").float().unsqueeze(1) * frequencies
    return torch.nn.functional.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, size % 2))


def waving(c: Config, wiring: type[Wiring]) -> CausalLM:
    """Both sides with `waves`; the encoder may have a vocabulary of its own."""
    positions = partial(waves, c.max_position_embeddings, c.d_model)
    vocab_size = c.get("decoder_vocab_size", c.vocab_size)
    decoder = token_table(c, vocab_size)
    shared = c.get("share_encoder_decoder_embeddings", True)
    tables = {"decoder": decoder, "encoder": decoder if shared else token_table(c)}
    names = SHARED if shared else APART
    return translator(c, lambda side: FixedPositions(tables[side], positions), names, wiring, vocab_size)


@architecture("MarianMTModel", about="Marian", examples=("Helsinki-NLP/opus-mt-en-de",))
def marian(c: Config) -> CausalLM:
    return waving(c, PostNorm)


@architecture("PegasusForConditionalGeneration", about="Pegasus", examples=("google/pegasus-xsum",))
def pegasus(c: Config) -> CausalLM:
    """Zhang et al. 2020."""
    return waving(c, PreNorm)


@architecture(
    "M2M100ForConditionalGeneration",
    about="M2M-100, NLLB",
    examples=("facebook/nllb-200-distilled-600M", "facebook/m2m100_418M"),
)
def m2m100(c: Config) -> CausalLM:
    """Fan et al. 2020. Positions are counted from the one after the padding's on."""
    tokens, first = token_table(c), c.get("pad_token_id", 1) + 1
    positions = partial(waves_to_the_end, c.max_position_embeddings, c.d_model, first)
    return translator(c, lambda side: FixedPositions(tokens, positions), SHARED)
