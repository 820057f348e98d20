"""Nemotron-H (NVIDIA 2025): one piece a layer, a Mamba-2 mixer, attention without positions, or a feed-forward."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.architectures.decoder import attention, decoder
from octavo.architectures.gguf_format import GGUFFormat, GGUFHeader
from octavo.architectures.mamba2 import SHORT, layer_kinds, mamba2_mixer, mamba_from_gguf, mixer_names, mixer_undo
from octavo.architectures.model_config import Config
from octavo.architectures.mtp import in_chain
from octavo.architectures.registry import architecture
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.ops import Backend, RouterSpec
from octavo.parts import MLP, Batch, CausalLM, Linear, Mamba2Sizes, MoE, Names, PreNorm, RMSNorm, parameter, stacked

LETTERS = {"M": "linear_attention", "*": "full_attention", "-": "mlp", "E": "moe"}
PIECE, HERE = "backbone.layers.{i}.mixer", "layers.{i}.mixer"
EXPERTS = {f"{PIECE}.experts.": "model.layers.{i}.mlp.experts."}
NEMOTRON_H_NAMES = Names(
    {
        "backbone.embeddings": "embed",
        "backbone.layers.{i}.norm": "layers.{i}.mixer_norm",
        **mixer_names(PIECE, HERE),
        f"{PIECE}.{{q|k|v}}_proj": HERE + ".qkv.{q|k|v}",
        f"{PIECE}.o_proj": HERE + ".o",
        f"{PIECE}.{{up|down}}_proj": HERE + ".{up|down}",
        f"{PIECE}.gate.e_score_correction_bias": parameter(HERE + ".moe.choice_bias"),
        f"{PIECE}.gate": HERE + ".moe.router",
        f"{PIECE}.experts.{{up|down}}_proj": stacked(HERE + ".moe.experts.{e}.{up|down}.weight", full_name=True),
        f"{PIECE}.experts.{{e}}.{{up|down}}_proj": HERE + ".moe.experts.{e}.{up|down}",
        f"{PIECE}.shared_experts.{{up|down}}_proj": HERE + ".shared.{up|down}",
        f"{PIECE}.{{fc1|fc2}}_latent_proj": HERE + ".{to|from}_latent",
        "backbone.norm_f": "norm",
        "lm_head": "head",
    },
    prefix="backbone.",
    spellings={"model.": "backbone."},
    beside=("mtp.",),
)


class LatentMoE(nn.Module):
    """Experts, which may work on a narrower row than the router reads, and one that serves every token."""

    def __init__(self, moe: MoE, shared: MLP, latents: Callable[[], tuple[Linear, Linear]] | None) -> None:
        super().__init__()
        self.moe, self.shared = moe, shared
        self.to_latent: Linear | None = None
        self.from_latent: Linear | None = None
        if latents:
            self.to_latent, self.from_latent = latents()

    def prepare(self, backend: Backend) -> None:
        self._add = backend.add

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        values = x if self.to_latent is None else self.to_latent(x, batch)
        routed = self.moe.summed(self.moe.of(x, values, batch))
        if self.from_latent is not None:
            routed = self.from_latent(routed, batch)
        return self._add(routed, self.shared(x, batch))


def experts(c: Config) -> LatentMoE:
    """The experts of a layer."""
    count, size, latent_size = c.n_routed_experts, c.hidden_size, c.get("moe_latent_size")
    route = RouterSpec(
        c.num_experts_per_tok,
        norm=1.0 if c.norm_topk_prob else None,
        eps=1e-20,
        factor=c.routed_scaling_factor,
        num_groups=c.n_group,
        top_groups=c.topk_group,
        group_best=2,
        scores="sigmoid",
        is_biased=True,
    )
    expert = partial(MLP, latent_size or size, c.moe_intermediate_size, c.mlp_hidden_act)
    moe = MoE(Linear(size, count, exact=True), [expert() for _ in range(count)], route)
    shared = MLP(size, c.moe_shared_expert_intermediate_size, c.mlp_hidden_act, c.mlp_bias)

    def latents() -> tuple[Linear, Linear]:
        return Linear(size, latent_size, c.mlp_bias), Linear(latent_size, size, c.mlp_bias)

    return LatentMoE(moe, shared, latents if latent_size else None)


def _from_gguf(shared: dict[str, Any], file: GGUFHeader) -> dict[str, Any]:
    """A layer without key heads and inner values is a mixer."""
    counts, sizes = shared["num_key_value_heads"], shared["intermediate_size"]
    routed = [f"blk.{i}.ffn_gate_inp.weight" in file.tensors for i in range(len(counts))]
    inner = ["moe" if each else "mlp" for each in routed]
    kinds = ["full_attention" if n else k if m else "mamba" for n, m, k in zip(counts, sizes, inner, strict=True)]
    own = {"mamba_n_heads": "mamba_num_heads", "mamba_d_head": "mamba_head_dim", "mamba_d_state": "ssm_state_size"}
    return {
        **mamba_from_gguf(file, {**SHORT, **own}),
        "layers_block_type": kinds[: shared["num_hidden_layers"]],
        "num_key_value_heads": max(counts) or 1,
        "intermediate_size": max((n for n, each in zip(sizes, routed, strict=True) if not each), default=0) or 1,
        "layer_norm_epsilon": shared.get("rms_norm_eps", shared["layer_norm_epsilon"]),
        "moe_shared_expert_intermediate_size": shared.get("shared_expert_intermediate_size"),
        "moe_latent_size": file.value("moe_latent_size"),
        "norm_topk_prob": bool(shared.get("norm_topk_prob")),
        "routed_scaling_factor": shared.get("routed_scaling_factor") or 1.0,
        "n_group": shared.get("n_group") or 1,
        "topk_group": shared.get("topk_group") or 1,
    }


@architecture(
    "NemotronHForCausalLM",
    about="Nemotron-H, Nemotron Nano 2 and 3",
    examples=("nvidia/Nemotron-H-8B-Base-8K", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"),
    gguf=GGUFFormat("nemotron_h", config=_from_gguf, undo=mixer_undo(PIECE), spelled=EXPERTS, also=("nemotron_h_moe",)),
)
def nemotron_h(c: Config) -> CausalLM:
    pattern: str = c.get("hybrid_override_pattern", "ME*-")
    if unknown := set(pattern) - set(LETTERS):
        raise CheckpointError(f"config.json: hybrid_override_pattern has {min(unknown)!r}, which is no kind of layer.")
    kinds = layer_kinds(c.first("layers_block_type", "layer_types") or [LETTERS[letter] for letter in pattern])
    c = c.replace(num_hidden_layers=len(kinds))
    norm = partial(RMSNorm, c.hidden_size, c.layer_norm_epsilon)
    attn = attention(c, rope=None, window=c.get("sliding_window"))
    sizes = Mamba2Sizes(c.mamba_num_heads, c.mamba_head_dim, c.n_groups, c.ssm_state_size, c.conv_kernel)
    low, high = c.get("time_step_min", 0.0), float("inf")
    options = {"activation": c.mamba_hidden_act, "bias": c.use_bias, "conv_bias": c.use_conv_bias}
    make: dict[str, Callable[[int], nn.Module]] = {
        "linear_attention": lambda i: mamba2_mixer(c, sizes, c.layer_norm_epsilon, dt_limit=(low, high), **options),
        "full_attention": attn,
        "mlp": lambda i: MLP(c.hidden_size, c.intermediate_size, c.mlp_hidden_act, c.mlp_bias),
        "moe": lambda i: experts(c),
    }
    if unknown := set(kinds) - set(make):
        raise CheckpointError(f"config.json: {min(unknown)[:60]!r} is no kind of layer of this model.")
    model = decoder(c, norm, lambda i: PreNorm(norm, mixer=make[kinds[i]](i)), NEMOTRON_H_NAMES)
    if not c.get("num_nextn_predict_layers"):
        return model
    letters: str = c.get("mtp_hybrid_override_pattern", "*E")
    more = layer_kinds(c.get("mtp_layers_block_type") or [LETTERS.get(letter, letter) for letter in letters])
    if unknown := set(more) - {"full_attention", "moe", "mlp"}:
        raise UnsupportedModelError(
            f"config.json: {min(unknown)[:60]!r} is no layer that predicts further tokens here."
        )
    return in_chain(model, c, norm, [partial(make[kind], 0) for kind in more])
