"""Torch modules of which models are composed. A part takes plain values, never a config.json."""

from octavo.parts.altup import AltUp, AltUpEmbedding, StreamMerge
from octavo.parts.batch import Batch, CrossBatch, EncoderBatch, PagedView, PlacedRows, RecurrentView, SpanBatch
from octavo.parts.bidirectional import BidirectionalAttention
from octavo.parts.causal_convolution import ShortConvolution
from octavo.parts.causal_lm import CausalLM
from octavo.parts.convolved_layer import ConvolvedPostNorm
from octavo.parts.delta_net import DeltaNet, DeltaSizes, GatedRMSNorm, KimiDelta
from octavo.parts.disentangled import DisentangledAttention, DistanceVectors
from octavo.parts.embedding import AliasedEmbedding, Embedding, FixedPositions, NormedEmbedding, PositionedEmbedding
from octavo.parts.encoder import CrossAttention, EncoderAttention
from octavo.parts.gated_attention import GatedAttention, gates_first
from octavo.parts.grid_tower import Grid, GridTower, frame_runs
from octavo.parts.group_linear import GroupLinear
from octavo.parts.hyper_connections import HyperConnected, HyperConnectedLM, RepeatedEmbedding, StreamWeights
from octavo.parts.intern_vit import InternViT, LayerScale, pixel_shuffle
from octavo.parts.key_pool import KeyIndexer, KeyPool
from octavo.parts.latent import LatentAttention
from octavo.parts.lightning import LightningAttention, lightning_slopes
from octavo.parts.linear_layer import Linear
from octavo.parts.mamba2_mixer import GroupedRMSNorm, Mamba2Mixer, Mamba2Sizes
from octavo.parts.mamba_mixer import MambaMixer
from octavo.parts.media_tower import MediaData, MediaTower, together
from octavo.parts.mlp import MLP, GatedMLP, SparseGatedMLP
from octavo.parts.moe import MoE, softmax_then_topk
from octavo.parts.names import (
    Into,
    Names,
    alternating,
    gate_second,
    grouped_qkv,
    of_layer,
    parameter,
    stacked,
    transposed,
)
from octavo.parts.norms import HeadNorm, LayerNorm, Norm, PlainRMSNorm, RMSNorm
from octavo.parts.per_layer import PerLayerEmbedding, PerLayerInput
from octavo.parts.pixtral_tower import PixtralTower, ProjectedPixtral
from octavo.parts.pooled_attention import PooledAttention
from octavo.parts.pooler import Pooler
from octavo.parts.qk_transform import Clip, QKNorm, QKTransform, RotatedQKNorm
from octavo.parts.query_scale import QueryScale
from octavo.parts.recurrent_block import RecurrentBlock
from octavo.parts.relative_bias import RelativeBias
from octavo.parts.resampler import QueryAttention, QueryBatch, Resampler, resampler_names, sin_cos_positions
from octavo.parts.rotary_embedding import AxialRotaryEmbedding, LongRotaryEmbedding, RotaryEmbedding, grid_angles
from octavo.parts.self_attention import Attention, alibi_slopes
from octavo.parts.shared_attention import SharedAttention
from octavo.parts.sparse_latent import Indexer, SparseLatentAttention
from octavo.parts.state import PagedKV, Recurrent, StateSpec
from octavo.parts.text_encoder import ScoreHead, TextEmbedding, TextEncoder
from octavo.parts.vision_tower import VisionSizes, VisionTower, clip_tower, siglip_tower
from octavo.parts.vision_transformer import (
    EncoderLayers,
    PatchEmbedding,
    bucketed_positions,
    flat_convolution,
    resized_positions,
    unfold,
)
from octavo.parts.vq_encoder import VQEncoder
from octavo.parts.whisper_encoder import WhisperEncoder, whisper_names
from octavo.parts.wiring import (
    BranchNorm,
    FromNormed,
    GatedPreNorm,
    PostNorm,
    PreNorm,
    SandwichNorm,
    SharedNorm,
    SideBySide,
    Wiring,
)

__all__ = [
    "MLP",
    "AliasedEmbedding",
    "AltUp",
    "AltUpEmbedding",
    "Attention",
    "AxialRotaryEmbedding",
    "Batch",
    "BidirectionalAttention",
    "BranchNorm",
    "CausalLM",
    "Clip",
    "ConvolvedPostNorm",
    "CrossAttention",
    "CrossBatch",
    "DeltaNet",
    "DeltaSizes",
    "DisentangledAttention",
    "DistanceVectors",
    "Embedding",
    "EncoderAttention",
    "EncoderBatch",
    "EncoderLayers",
    "FixedPositions",
    "FromNormed",
    "GatedAttention",
    "GatedMLP",
    "GatedPreNorm",
    "GatedRMSNorm",
    "Grid",
    "GridTower",
    "GroupLinear",
    "GroupedRMSNorm",
    "HeadNorm",
    "HyperConnected",
    "HyperConnectedLM",
    "Indexer",
    "InternViT",
    "Into",
    "KeyIndexer",
    "KeyPool",
    "KimiDelta",
    "LatentAttention",
    "LayerNorm",
    "LayerScale",
    "LightningAttention",
    "Linear",
    "LongRotaryEmbedding",
    "Mamba2Mixer",
    "Mamba2Sizes",
    "MambaMixer",
    "MediaData",
    "MediaTower",
    "MoE",
    "Names",
    "Norm",
    "NormedEmbedding",
    "PagedKV",
    "PagedView",
    "PatchEmbedding",
    "PerLayerEmbedding",
    "PerLayerInput",
    "PixtralTower",
    "PlacedRows",
    "PlainRMSNorm",
    "PooledAttention",
    "Pooler",
    "PositionedEmbedding",
    "PostNorm",
    "PreNorm",
    "ProjectedPixtral",
    "QKNorm",
    "QKTransform",
    "QueryAttention",
    "QueryBatch",
    "QueryScale",
    "RMSNorm",
    "Recurrent",
    "RecurrentBlock",
    "RecurrentView",
    "RelativeBias",
    "RepeatedEmbedding",
    "Resampler",
    "RotaryEmbedding",
    "RotatedQKNorm",
    "SandwichNorm",
    "ScoreHead",
    "SharedAttention",
    "SharedNorm",
    "ShortConvolution",
    "SideBySide",
    "SpanBatch",
    "SparseGatedMLP",
    "SparseLatentAttention",
    "StateSpec",
    "StreamMerge",
    "StreamWeights",
    "TextEmbedding",
    "TextEncoder",
    "VQEncoder",
    "VisionSizes",
    "VisionTower",
    "WhisperEncoder",
    "Wiring",
    "alibi_slopes",
    "alternating",
    "bucketed_positions",
    "clip_tower",
    "flat_convolution",
    "frame_runs",
    "gate_second",
    "gates_first",
    "grid_angles",
    "grouped_qkv",
    "lightning_slopes",
    "of_layer",
    "parameter",
    "pixel_shuffle",
    "resampler_names",
    "resized_positions",
    "siglip_tower",
    "sin_cos_positions",
    "softmax_then_topk",
    "stacked",
    "together",
    "transposed",
    "unfold",
    "whisper_names",
]
