"""Torch modules of which models are composed. A part takes plain values, never a config.json."""

from octavo.parts.attention import Attention, Clip, QKNorm, alibi_slopes
from octavo.parts.batch import Batch, PagedView, RecurrentView
from octavo.parts.embedding import Embedding, NormedEmbedding, PositionedEmbedding
from octavo.parts.encoder import CrossAttention, EncoderAttention, EncoderBatch
from octavo.parts.latent import LatentAttention
from octavo.parts.linear import Linear
from octavo.parts.mamba import MambaMixer
from octavo.parts.mlp import MLP, GatedMLP
from octavo.parts.model import CausalLM
from octavo.parts.moe import MoE, softmax_then_choose
from octavo.parts.names import Into, Names, grouped_qkv, parameter, stacked, transposed
from octavo.parts.norm import LayerNorm, RMSNorm
from octavo.parts.pooler import Pooler
from octavo.parts.residual import Block, FromNormed, PostNorm, Residual, SharedNorm, SideBySide
from octavo.parts.rotary import LongRotary, Rotary
from octavo.parts.state import PagedKV, Recurrent, StateSpec

__all__ = [
    "MLP",
    "Attention",
    "Batch",
    "Block",
    "CausalLM",
    "Clip",
    "CrossAttention",
    "Embedding",
    "EncoderAttention",
    "EncoderBatch",
    "FromNormed",
    "GatedMLP",
    "Into",
    "LatentAttention",
    "LayerNorm",
    "Linear",
    "LongRotary",
    "MambaMixer",
    "MoE",
    "Names",
    "NormedEmbedding",
    "PagedKV",
    "PagedView",
    "Pooler",
    "PositionedEmbedding",
    "PostNorm",
    "QKNorm",
    "RMSNorm",
    "Recurrent",
    "RecurrentView",
    "Residual",
    "Rotary",
    "SharedNorm",
    "SideBySide",
    "StateSpec",
    "alibi_slopes",
    "grouped_qkv",
    "parameter",
    "softmax_then_choose",
    "stacked",
    "transposed",
]
