"""GPT-2 (Radford et al. 2019), weights published as [in, out], and StarCoder's GPT-BigCode (Li et al. 2023)."""

from functools import partial

from octavo.architectures.decoder import decoder
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import (
    MLP,
    Attention,
    CausalLM,
    Embedding,
    LayerNorm,
    Names,
    PositionedEmbedding,
    PreNorm,
    grouped_qkv,
    transposed,
)

NAMES = Names(
    {
        "transformer.wte": "embed.tokens",
        "transformer.wpe": "embed.positions",
        "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
        "transformer.h.{i}.attn.c_attn": transposed("layers.{i}.attn.qkv"),
        "transformer.h.{i}.attn.c_proj": transposed("layers.{i}.attn.o"),
        "transformer.h.{i}.ln_2": "layers.{i}.mlp_norm",
        "transformer.h.{i}.mlp.c_fc": transposed("layers.{i}.mlp.up"),
        "transformer.h.{i}.mlp.c_proj": transposed("layers.{i}.mlp.down"),
        "transformer.ln_f": "norm",
        "lm_head": "head",
    },
    # The causal mask, which old files carry.
    ignored=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"),
    prefix="transformer.",
)


@architecture(
    "GPT2LMHeadModel",
    about="GPT-2",
    examples=("gpt2", "gpt2-xl"),
    gguf=GGUFFormat("gpt2", names={name: into.path for name, into in NAMES.table.items() if into.transform}),
)
def gpt2(c: Config) -> CausalLM:
    return body(c, num_kv_heads=c.n_head, names=NAMES)


BIGCODE_NAMES = Names(
    {name: into.path for name, into in NAMES.table.items()},
    ignored=NAMES.ignored,
    prefix="transformer.",
)


@architecture(
    "GPTBigCodeForCausalLM",
    about="StarCoder, SantaCoder, WizardCoder",
    examples=("bigcode/starcoder", "bigcode/gpt_bigcode-santacoder", "WizardLM/WizardCoder-15B-V1.0"),
    gguf=GGUFFormat("starcoder"),
)
def gpt_bigcode(c: Config) -> CausalLM:
    """GPT-2 with one key and value head, and weights as [out, in]."""
    if not c.multi_query:
        num_heads = c.n_head
        qkv = grouped_qkv("layers.{i}.attn.qkv", num_heads, 1, c.n_embd // num_heads)
        names = BIGCODE_NAMES.replacing({"transformer.h.{i}.attn.c_attn": qkv})
        return body(c, num_kv_heads=num_heads, names=names)
    return body(c, num_kv_heads=1, names=BIGCODE_NAMES)


def body(c: Config, *, num_kv_heads: int, names: Names) -> CausalLM:
    """Learned positions, layer norms, attention and feed-forward with biases."""
    hidden_size, num_heads = c.n_embd, c.n_head
    norm = partial(LayerNorm, hidden_size, eps=c.layer_norm_epsilon)
    head_dim = hidden_size // num_heads
    scale = head_dim**-0.5 if c.scale_attn_weights else 1.0
    by_layer = c.scale_attn_by_inverse_layer_idx
    attn = partial(Attention, hidden_size, num_heads, num_kv_heads, head_dim, bias=True, out_bias=True)
    mlp = partial(MLP, hidden_size, c.get("n_inner", 4 * hidden_size), c.activation_function, bias=True)
    return decoder(
        c,
        norm,
        lambda i: PreNorm(norm, attn=attn(scale=scale / (i + 1) if by_layer else scale), mlp=mlp()),
        names,
        embed=PositionedEmbedding(Embedding(c.vocab_size, hidden_size), Embedding(c.n_positions, hidden_size)),
    )
