"""RecurrentGemma (Botev et al. 2024): Griffin's recurrent blocks, and attention to the last tokens."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder
from octavo.architectures.mamba import drop_middle
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Embedding, GatedMLP, PreNorm, RecurrentBlock, RMSNorm, parameter

MIXER, BLOCK = "model.layers.{i}.temporal_block", "layers.{i}.attn"
RECURRENT_GEMMA_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.temporal_pre_norm": "layers.{i}.attn_norm",
        f"{MIXER}.{{q|k|v}}_proj": BLOCK + ".qkv.{q|k|v}",
        f"{MIXER}.o_proj": BLOCK + ".o",
        f"{MIXER}.linear_{{x|y}}": BLOCK + ".xy.{x|y}",
        f"{MIXER}.linear_out": BLOCK + ".out",
        f"{MIXER}.conv_1d.weight": parameter(BLOCK + ".conv.weight", drop_middle),
        f"{MIXER}.conv_1d.bias": parameter(BLOCK + ".conv.bias"),
        f"{MIXER}.rg_lru.{{input|recurrent}}_gate_weight": parameter(BLOCK + ".{input|recurrent}_gate"),
        f"{MIXER}.rg_lru.{{input|recurrent}}_gate_bias": parameter(BLOCK + ".{input|recurrent}_bias"),
        f"{MIXER}.rg_lru.recurrent_param": parameter(BLOCK + ".decay"),
        "model.layers.{i}.channel_pre_norm": "layers.{i}.mlp_norm",
        "model.layers.{i}.mlp_block.{gate|up}_proj": "layers.{i}.mlp.gate_up.{gate|up}",
        "model.layers.{i}.mlp_block.down_proj": "layers.{i}.mlp.down",
        "model.final_norm": "norm",
    }
)


@architecture(
    "RecurrentGemmaForCausalLM",
    about="RecurrentGemma, Griffin",
    examples=("google/recurrentgemma-2b", "google/recurrentgemma-9b-it"),
)
def recurrent_gemma(c: Config) -> CausalLM:
    size, num_heads, activation = c.hidden_size, c.num_attention_heads, c.hidden_activation
    norm = partial(RMSNorm, size, eps=c.rms_norm_eps, offset=1.0)
    attn = attention(c, bias=c.attention_bias, out_bias=True, window=c.attention_window_size)
    block = partial(RecurrentBlock, size, c.get("lru_width", size), num_heads, c.conv1d_width, activation)
    mlp = partial(GatedMLP, size, c.intermediate_size // 2, activation, bias=True)
    kinds: list[str] = c.block_types

    def layer(i: int) -> PreNorm:
        is_attention = kinds[i % len(kinds)] == "attention"
        return PreNorm(norm, attn=attn(i) if is_attention else block(), mlp=mlp())

    embed = Embedding(c.vocab_size, size, size**0.5)
    return decoder(c, norm, layer, RECURRENT_GEMMA_NAMES, embed=embed, softcap=c.logits_soft_cap)
