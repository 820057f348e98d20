"""What heads guess, from the published formulas, in float64: a row of a token and of the hidden row before it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Layer = Callable[[Tensor, Tensor], Tensor]
"""Of rows `[tokens, hidden_size]` at positions `[tokens]`, each of which sees those before it."""
Head = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Rows of embeddings, hidden rows and positions to rows for the vocabulary, and in place of hidden rows."""


def rms(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def rotated(x: Tensor, positions: Tensor, theta: float, interleaved: bool = False) -> Tensor:
    """`x` `[tokens, heads, values]`, all of whose values are rotated."""
    size = x.shape[-1]
    angles = positions[:, None, None] * theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    a, b = (x[..., ::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    first, second = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
    return torch.stack([first, second], -1).flatten(-2) if interleaved else torch.cat([first, second], -1)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of `[tokens, heads, values]`; fewer key heads are shared. `[tokens, heads * values]`."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(1).bool(), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)


def gated(x: Tensor, w: Weights, at: str) -> Tensor:
    up = x @ w[f"{at}up_proj.weight"].T
    return (torch.nn.functional.silu(x @ w[f"{at}gate_proj.weight"].T) * up) @ w[f"{at}down_proj.weight"].T


def chosen(x: Tensor, w: Weights, at: str, experts: Tensor, weights: Tensor) -> Tensor:
    rows = [
        sum(f * gated(row, w, f"{at}experts.{int(e)}.") for e, f in zip(es, fs, strict=True))
        for row, es, fs in zip(x, experts, weights, strict=True)
    ]
    return torch.stack(rows)  # type: ignore[arg-type]


def deepseek_layer(c: Mapping[str, Any], w: Weights, at: str) -> Layer:
    """Latent attention (DeepSeek-V2, 2.1) and experts by groups (DeepSeek-V3, 2.1.2), without YaRN."""
    heads, nope, rope, value = (
        c[k] for k in ("num_attention_heads", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    )
    own = f"{at}self_attn."

    def attention(x: Tensor, positions: Tensor) -> Tensor:
        q = rms(x @ w[own + "q_a_proj.weight"].T, w[own + "q_a_layernorm.weight"]) @ w[own + "q_b_proj.weight"].T
        q_nope, q_rope = q.view(len(x), heads, nope + rope).split([nope, rope], -1)
        latent, k_rope = (x @ w[own + "kv_a_proj_with_mqa.weight"].T).split([c["kv_lora_rank"], rope], -1)
        kv = rms(latent, w[own + "kv_a_layernorm.weight"]) @ w[own + "kv_b_proj.weight"].T
        k_nope, v = kv.view(len(x), heads, nope + value).split([nope, value], -1)
        q_rope, k_rope = (
            rotated(part.reshape(len(x), -1, rope), positions, c["rope_theta"], interleaved=True)
            for part in (q_rope, k_rope)
        )
        k = torch.cat([k_nope, k_rope.expand(-1, heads, -1)], -1)
        return attended(torch.cat([q_nope, q_rope], -1), k, v) @ w[own + "o_proj.weight"].T

    def experts(x: Tensor) -> Tensor:
        scores = (x @ w[f"{at}mlp.gate.weight"].T).sigmoid()
        biased = scores + w[f"{at}mlp.gate.e_score_correction_bias"]
        groups = biased.view(len(x), c["n_group"], -1)
        best = groups.topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
        allowed = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, True)
        biased = groups.masked_fill(~allowed[..., None], -torch.inf).flatten(1)
        picked = biased.topk(c["num_experts_per_tok"], -1).indices
        weights = scores.gather(1, picked)
        weights = weights / weights.sum(-1, keepdim=True) * c["routed_scaling_factor"]
        return chosen(x, w, f"{at}mlp.", picked, weights) + gated(x, w, f"{at}mlp.shared_experts.")

    def layer(x: Tensor, positions: Tensor) -> Tensor:
        x = x + attention(rms(x, w[f"{at}input_layernorm.weight"]), positions)
        return x + experts(rms(x, w[f"{at}post_attention_layernorm.weight"]))

    return layer


def qwen3_next_layer(c: Mapping[str, Any], w: Weights, at: str) -> Layer:
    """Gated attention whose heads are normed and rotated in part, and experts with one for all behind a gate."""
    heads, kv_heads, size = (c[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    own, part = f"{at}self_attn.", int(size * c["partial_rotary_factor"])

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        return torch.cat([rotated(x[..., :part], positions, c["rope_theta"]), x[..., part:]], -1)

    def attention(x: Tensor, positions: Tensor) -> Tensor:
        q, gate = (x @ w[own + "q_proj.weight"].T).view(len(x), heads, 2, size).unbind(2)
        k, v = ((x @ w[f"{own}{name}_proj.weight"].T).view(len(x), kv_heads, size) for name in "kv")
        q, k = rms(q, 1 + w[own + "q_norm.weight"]), rms(k, 1 + w[own + "k_norm.weight"])
        y = attended(turned(q, positions), turned(k, positions), v)
        return (y * gate.flatten(1).sigmoid()) @ w[own + "o_proj.weight"].T

    def experts(x: Tensor) -> Tensor:
        weights, picked = (x @ w[f"{at}mlp.gate.weight"].T).softmax(-1).topk(c["num_experts_per_tok"], -1)
        y = chosen(x, w, f"{at}mlp.", picked, weights / weights.sum(-1, keepdim=True))
        gate = (x @ w[f"{at}mlp.shared_expert_gate.weight"].T).sigmoid()
        return y + gate * gated(x, w, f"{at}mlp.shared_expert.")

    def layer(x: Tensor, positions: Tensor) -> Tensor:
        x = x + attention(rms(x, 1 + w[f"{at}input_layernorm.weight"]), positions)
        return x + experts(rms(x, 1 + w[f"{at}post_attention_layernorm.weight"]))

    return layer


def deepseek(c: Mapping[str, Any], w: Weights) -> Head:
    """DeepSeek-V3's section 2.2."""
    at = f"model.layers.{c['num_hidden_layers']}."
    layer = deepseek_layer(c, w, at)

    def head(e: Tensor, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([rms(e, w[f"{at}enorm.weight"]), rms(h, w[f"{at}hnorm.weight"])], -1)
        x = rms(layer(both @ w[f"{at}eh_proj.weight"].T, positions), w[f"{at}shared_head.norm.weight"])
        return x, x

    return head


def qwen3_next(c: Mapping[str, Any], w: Weights) -> Head:
    layer = qwen3_next_layer(c, w, "mtp.layers.0.")

    def head(e: Tensor, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        e, h = rms(e, 1 + w["mtp.pre_fc_norm_embedding.weight"]), rms(h, 1 + w["mtp.pre_fc_norm_hidden.weight"])
        x = rms(layer(torch.cat([e, h], -1) @ w["mtp.fc.weight"].T, positions), 1 + w["mtp.norm.weight"])
        return x, x

    return head


def llama_layer(c: Mapping[str, Any], w: Weights, at: str) -> tuple[Layer, Callable[[Tensor], Tensor]]:
    """Attention and feed-forward, without norms and sums."""
    heads, kv_heads, size = (c[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))

    def attention(x: Tensor, positions: Tensor) -> Tensor:
        q, k, v = (
            (x @ w[f"{at}self_attn.{name}_proj.weight"].T).view(len(x), count, size)
            for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))
        )
        q, k = rotated(q, positions, c["rope_theta"]), rotated(k, positions, c["rope_theta"])
        return attended(q, k, v) @ w[f"{at}self_attn.o_proj.weight"].T

    return attention, lambda x: gated(rms(x, w[f"{at}post_attention_layernorm.weight"]), w, f"{at}mlp.")


def eagle(c: Mapping[str, Any], w: Weights) -> Head:
    """EAGLE's sections 3.1 and 4.1: what it makes of a row is in place of the hidden row after the last norm."""
    attention, mlp = llama_layer(c, w, "layers.0.")

    def head(e: Tensor, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([e, h], -1) @ w["fc.weight"].T
        x = x + attention(x, positions)
        x = x + mlp(x)
        return x, x

    return head


def eagle3(c: Mapping[str, Any], w: Weights) -> Head:
    """EAGLE-3's section 3: rows of several depths go through `fc` before they come here."""
    attention, mlp = llama_layer(c, w, "midlayer.")

    def head(e: Tensor, h: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([rms(e, w["midlayer.input_layernorm.weight"]), rms(h, w["midlayer.hidden_norm.weight"])], -1)
        x = h + attention(both, positions)
        x = x + mlp(x)
        return rms(x, w["norm.weight"]), x

    return head


def guesses(
    head: Head,
    to_vocabulary: Tensor,
    table: Tensor,
    tokens: list[int],
    hidden: Tensor,
    count: int,
) -> tuple[list[int], list[float]]:
    """The likeliest tokens after `tokens`, and by how much each is the likeliest.

    `hidden` `[tokens - 1, hidden_size]` are the model's rows of all but the last.
    """
    made, margins = list[int](), list[float]()
    for _ in range(count):
        given = tokens[1:] + made
        rows, carried = head(table[given], hidden, torch.arange(1, len(given) + 1, dtype=torch.float64))
        best = (rows[-1] @ to_vocabulary.T).nan_to_num(-torch.inf).topk(2)  # tokens that a head has not are nan
        made.append(int(best.indices[0]))
        margins.append(float(best.values[0] - best.values[1]))
        hidden = torch.cat([hidden, carried[-1:]])
    return made, margins
