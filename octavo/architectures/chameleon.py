"""Chameleon (Meta 2024): pictures become tokens of its own vocabulary, which a VQ-GAN's encoder finds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from octavo.architectures.decoder import NAMES as TEXT_NAMES
from octavo.architectures.decoder import attention, gated_mlp, rms_norm
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.media.processors.chameleon import ChameleonProcessor
from octavo.parts import (
    BranchNorm,
    CausalLM,
    Embedding,
    HeadNorm,
    Into,
    Linear,
    MediaData,
    MediaTower,
    PreNorm,
    QKNorm,
    VQEncoder,
    flat_convolution,
    parameter,
)

ENCODER = "model.vqmodel.encoder"


def _convolutions(table: Mapping[str, str]) -> dict[str, str | Into]:
    return {f"{ENCODER}.{name}": Into(f"media.encoder.{path}", flat_convolution) for name, path in table.items()}


def _block(published: str, path: str) -> dict[str, str | Into]:
    """Where the tensors of a residual block go."""
    norms: dict[str, str | Into] = {f"{ENCODER}.{published}.{{norm1|norm2}}": f"media.encoder.{path}.{{norm1|norm2}}"}
    convolutions = {
        f"{published}.{{conv1|conv2}}": f"{path}.{{conv1|conv2}}",
        f"{published}.nin_shortcut": f"{path}.shortcut",
    }
    return norms | _convolutions(convolutions)


def _attention(published: str, path: str) -> dict[str, str | Into]:
    norms: dict[str, str | Into] = {f"{ENCODER}.{published}.norm": f"media.encoder.{path}.norm"}
    return norms | _convolutions({f"{published}.{{q|k|v|proj_out}}": f"{path}.{{q|k|v|proj}}"})


NAMES: dict[str, str | Into] = {
    **_convolutions({"{conv_in|conv_out}": "{conv_in|conv_out}"}),
    **_block("down.{i}.block.{b}", "down.{i}.block.{b}"),
    **_attention("down.{i}.attn.{b}", "down.{i}.attn.{b}"),
    **_convolutions({"down.{i}.downsample.conv": "down.{i}.downsample"}),
    **_block("mid.{block_1|block_2}", "mid.{0|2}"),
    **_attention("mid.attn_1", "mid.1"),
    f"{ENCODER}.norm_out": "media.encoder.norm_out",
    "model.vqmodel.quant_conv": Into("media.encoder.quant", flat_convolution),
    "model.vqmodel.post_quant_conv": Into("media.unused", flat_convolution),
    "model.vqmodel.quantize.embedding.weight": parameter("media.encoder.codes"),
}
TEXT = TEXT_NAMES.replacing({"model.layers.{i}.self_attn.{q|k}_norm": "layers.{i}.attn.qk_transform.{q|k}"})
DEFAULTS: dict[str, Any] = {
    "vocab_size": 65536,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "swin_norm": False,
    "tie_word_embeddings": False,
    "vq_config": {
        "embed_dim": 256,
        "num_embeddings": 8192,
        "double_latent": False,
        "latent_channels": 256,
        "resolution": 512,
        "in_channels": 3,
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_type": "vanilla",
    },
}
PICTURE = "IMGIMG"
"""How the names of picture tokens begin; letters for the digits of the code follow, A for 0, and a Z."""


class ChameleonTower(MediaTower):
    """The token table's rows of a picture's tokens.

    Args:
        encoder: finds the codes.
        tokens: the text's table.
        token_of: [codes] the token of each code.
    """

    def __init__(self, encoder: VQEncoder, tokens: Embedding, token_of: Sequence[int]) -> None:
        super().__init__()
        self.encoder = encoder
        self._table = (tokens,)  # a part of the text's, not of the tower's
        self.token_of = list(token_of)

    def forward(self, kind: str, items: Sequence[MediaData]) -> list[Tensor]:
        token_of = torch.tensor(self.token_of, device=items[0]["pixel_values"].device)
        codes = [self.encoder(item["pixel_values"].to(self.dtype)) for item in items]
        return [self._table[0].of(token_of[each]) for each in codes]


class Chameleon(CausalLM):
    """It never writes the tokens of pictures."""

    def __init__(self, unwritten: Sequence[int], **parts: Any) -> None:
        super().__init__(**parts)
        self.unwritten = list(unwritten)

    def process_logits(self, logits: Tensor) -> Tensor:
        logits = super().process_logits(logits)
        logits[:, self.unwritten] = torch.finfo(torch.float32).min
        return logits


def picture_tokens(c: Config, codes: int) -> list[int]:
    """The token of each code. Raises CheckpointError where the vocabulary does not name one for each."""
    letters = str.maketrans("ABCDEFGHIJ", "0123456789")
    found = {
        int(name.removeprefix(PICTURE)[:-1].translate(letters)): token
        for name, token in c.vocabulary_map.items()
        if name.startswith(PICTURE)
    }
    if missing := sorted(set(range(codes)) - set(found)):
        raise CheckpointError(f"config.json: vocabulary_map has no {PICTURE} token for code {missing[0]}.")
    if any(not isinstance(token, int) or not 0 <= token < c.vocab_size for token in found.values()):
        raise CheckpointError(f"config.json: vocabulary_map has {PICTURE} tokens outside of the vocabulary.")
    return [found[code] for code in range(codes)]


def vq_encoder(c: Config) -> VQEncoder:
    """The encoder that a vq_config describes. Raises UnsupportedModelError for one that samples."""
    if c.double_latent:
        raise UnsupportedModelError("config.json: vq_config with double_latent is not supported.")
    sides = [c.resolution >> i for i in range(len(c.channel_multiplier))]
    attends = c.attn_type == "vanilla"
    attending = [*(attends and side in c.get("attn_resolutions", []) for side in sides), attends]
    return VQEncoder(
        c.in_channels,
        c.base_channels,
        c.channel_multiplier,
        c.num_res_blocks,
        attending,
        c.latent_channels,
        c.embed_dim,
        c.num_embeddings,
    )


@architecture(
    "ChameleonForConditionalGeneration",
    about="Chameleon",
    examples=("facebook/chameleon-7b",),
    media=ChameleonProcessor,
    defaults=DEFAULTS,
)
def chameleon(c: Config) -> CausalLM:
    num_heads, head_dim, bias = c.num_attention_heads, c.hidden_size // c.num_attention_heads, c.attention_bias
    norms = partial(HeadNorm, head_dim=head_dim, eps=1e-5, bias=True)
    attn = attention(
        c, bias=bias, out_bias=bias, qk_transform=lambda: QKNorm(norms(num_heads), norms(c.num_key_value_heads))
    )
    norm, mlp, wiring = rms_norm(c), gated_mlp(c, c.mlp_bias), BranchNorm if c.swin_norm else PreNorm
    vq = c.section("vq_config")
    token_of = picture_tokens(c, vq.num_embeddings)

    def layer(i: int) -> nn.Module:
        return wiring(norm, attn=attn(i), mlp=mlp())

    model = Chameleon(
        unwritten=token_of,
        embed=Embedding(c.vocab_size, c.hidden_size),
        layer=layer,
        layers=c.num_hidden_layers,
        norm=norm(),
        head=Linear(c.hidden_size, c.vocab_size),
        names=TEXT,
        tied=c.tie_word_embeddings,
    )
    return model.with_media(ChameleonTower(vq_encoder(vq), model.tokens, token_of), NAMES)
