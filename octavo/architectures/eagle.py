"""EAGLE's heads (Li et al. 2024, 2025), which lie in folders of their own: one layer of Llama's kind, or more."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from torch import Tensor, nn

from octavo.architectures.decoder import attention, gated_mlp, rms_norm
from octavo.architectures.model_config import Config
from octavo.errors import UnsupportedModelError
from octavo.parts import Names, PreNorm, parameter
from octavo.parts.draft_head import DraftHead, LayerChain
from octavo.parts.eagle3_head import Eagle3Head, WideAttention, WideLayer

LAYER = "draft_head.layer.layers.{i}."
PIECES = {
    "self_attn.{q|k|v}_proj": "attn.qkv.{q|k|v}",
    "self_attn.{q|k}_norm": "attn.qk_transform.{q|k}",
    "self_attn.o_proj": "attn.o",
    "input_layernorm": "attn_norm",
    "hidden_norm": "hidden_norm",
    "post_attention_layernorm": "mlp_norm",
    "mlp.{gate|up}_proj": "mlp.gate_up.{gate|up}",
    "mlp.down_proj": "mlp.down",
}
NAMES = Names(
    {
        "fc": "draft_head.project",
        "embedding_layernorm": "draft_head.embed_norm",
        "hidden_states_layernorm": "draft_head.hidden_norm",
        "norm": "draft_head.norm",
        "lm_head": "draft_head.head",
        **{f"layers.{{i}}.{name}": LAYER + path for name, path in PIECES.items()},
        **{f"midlayer.{name}": LAYER.replace("{i}", "0") + path for name, path in PIECES.items()},
        "d2t": parameter("draft_head.vocabulary.d2t"),
    },
    # The model's own table, and which of its tokens the head has.
    ignored=("embed_tokens.weight", "t2d", "layers.{i}.self_attn.rotary_emb.inv_freq"),
    spellings={"model.": ""},
)


class BarePreNorm(PreNorm):
    """A PreNorm whose first piece has no norm: the projection before it has what it needs."""

    def add_norms(self, name: str, norm: Callable[[], nn.Module]) -> None:
        if name != self.pieces[0]:
            super().add_norms(name, norm)

    def norm(self, name: str, x: Tensor, batch: Any) -> Tensor:
        return x if name == self.pieces[0] else super().norm(name, x, batch)


def _parts(c: Config, stored: Collection[str]) -> tuple[Any, Any, Any]:
    """Makers of norms, of the attention of a layer with more options, and of feed-forwards."""
    bias = any(name.endswith("q_proj.bias") for name in stored)
    out_bias = any(name.endswith("o_proj.bias") for name in stored)
    return rms_norm(c), partial(attention, c, bias=bias, out_bias=out_bias), gated_mlp(c, c.get("mlp_bias", False))


def eagle(c: Config, stored: Collection[str]) -> DraftHead:
    """EAGLE and EAGLE-2: a projection, and layers of which the first has no norm before its attention.

    Args:
        stored: names of the checkpoint's tensors.
    """
    norm, attn, mlp = _parts(c, stored)
    make = attn()
    layers = [(PreNorm if i else BarePreNorm)(norm, attn=make(i), mlp=mlp()) for i in range(c.num_hidden_layers)]
    is_normed = any(name.endswith("embedding_layernorm.weight") for name in stored)
    return DraftHead(
        c.hidden_size,
        LayerChain([*layers]),
        embed_norm=norm() if is_normed else None,
        hidden_norm=norm() if is_normed else None,
        norm=None,
        bias=any(name.endswith("fc.bias") for name in stored),
    )


def eagle3(c: Config, stored: Collection[str], model_layers: int, model_vocab_size: int) -> Eagle3Head:
    """EAGLE-3.

    Args:
        stored: names of the checkpoint's tensors.
        model_layers, model_vocab_size: of the model whose tokens are guessed.
    """
    norm, attn, mlp = _parts(c, stored)
    wide, plain = attn(part=WideAttention), attn()
    layers: list[nn.Module] = [WideLayer(norm, wide(0), mlp(), c.get("norm_before_residual", False))]
    layers += [PreNorm(norm, attn=plain(i), mlp=mlp()) for i in range(1, c.num_hidden_layers)]
    own = c.section("eagle_config")
    reads = c.get("eagle_aux_hidden_state_layer_ids") or own.get("eagle_aux_hidden_state_layer_ids")
    reads = tuple(reads or (2, model_layers // 2, model_layers - 3))
    if not own.get("use_aux_hidden_state", True):
        reads = ()
    if any(place < 0 for place in reads):
        raise UnsupportedModelError(f"the model's {model_layers} layers are too few for a head that reads three.")
    return Eagle3Head(
        c.hidden_size,
        layers,
        norm(),
        reads,
        vocab_size=c.get("draft_vocab_size") or c.vocab_size,
        model_vocab_size=model_vocab_size,
        has_map=any(name.endswith("d2t") for name in stored),
        has_head=any(name.endswith("lm_head.weight") for name in stored),
    )
