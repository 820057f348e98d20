"""Phi 1.5 and 2 (Li et al. 2023), and GPT-J (Wang 2021): side by side behind one norm, biases also in the head."""

from functools import partial

from octavo.architectures.decoder import NAMES, attention, decoder
from octavo.architectures.gguf_format import GGUFFormat
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.architectures.rope_config import make_rope
from octavo.parts import MLP, Attention, CausalLM, LayerNorm, Names, QKNorm, SharedNorm

PHI_NAMES = NAMES.replacing(
    {
        "model.layers.{i}.self_attn.{q|k}_layernorm": "layers.{i}.attn.qk_transform.{q|k}",
        "model.layers.{i}.self_attn.dense": "layers.{i}.attn.o",
        "model.layers.{i}.mlp.{fc1|fc2}": "layers.{i}.mlp.{up|down}",
        "model.final_layernorm": "norm",
    }
)


@architecture("PhiForCausalLM", about="Phi", examples=("microsoft/phi-1_5", "microsoft/phi-2"), gguf=GGUFFormat("phi2"))
def phi(c: Config) -> CausalLM:
    hidden_size, num_heads, eps = c.hidden_size, c.num_attention_heads, c.layer_norm_eps
    head_dim = hidden_size // num_heads

    def head_norms() -> QKNorm | None:
        norms = LayerNorm(head_dim, eps), LayerNorm(head_dim, eps)
        return QKNorm(*norms) if c.qk_layernorm else None

    norm = partial(LayerNorm, hidden_size, eps)
    attn = attention(c, qk_transform=head_norms, bias=True, out_bias=True)
    mlp = partial(MLP, hidden_size, c.intermediate_size, c.hidden_act, bias=True)
    return decoder(c, norm, lambda i: SharedNorm(norm, attn=attn(i), mlp=mlp()), PHI_NAMES, head_bias=True)


GPTJ_NAMES = Names(
    {
        "transformer.wte": "embed",
        "transformer.h.{i}.ln_1": "layers.{i}.attn_norm",
        "transformer.h.{i}.attn.{q|k|v}_proj": "layers.{i}.attn.qkv.{q|k|v}",
        "transformer.h.{i}.attn.out_proj": "layers.{i}.attn.o",
        "transformer.h.{i}.mlp.fc_in": "layers.{i}.mlp.up",
        "transformer.h.{i}.mlp.fc_out": "layers.{i}.mlp.down",
        "transformer.ln_f": "norm",
        "lm_head": "head",
    },
    # The causal mask, which old files carry.
    ignored=("transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias"),
    prefix="transformer.",
)


@architecture("GPTJForCausalLM", about="GPT-J", examples=("EleutherAI/gpt-j-6b", "nomic-ai/gpt4all-j"))
def gptj(c: Config) -> CausalLM:
    hidden_size, num_heads = c.n_embd, c.n_head
    head_dim = hidden_size // num_heads
    norm = partial(LayerNorm, hidden_size, c.layer_norm_epsilon)
    rope = make_rope(c, c.get("rotary_dim", head_dim), base=10000.0, partial=False, interleaved=True)
    attn = partial(Attention, hidden_size, num_heads, num_heads, head_dim, rope=rope)
    mlp = partial(MLP, hidden_size, c.get("n_inner", 4 * hidden_size), c.activation_function, bias=True)
    return decoder(c, norm, lambda i: SharedNorm(norm, attn=attn(), mlp=mlp()), GPTJ_NAMES, head_bias=True)
