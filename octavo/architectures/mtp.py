"""Layers that predict further tokens, as checkpoints have them beside the model (MTP): where each family's lie.

A family says which of its layers it is; norms and the projection around it are everybody's. Where a checkpoint has
several, the first is read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from octavo.architectures.decoder import MORE_LAYERS
from octavo.architectures.model_config import Config
from octavo.parts import CausalLM, Into, PreNorm
from octavo.parts.draft_head import DraftHead, LayerChain, Predictor

HEAD = "draft_head."
STEM, PLACE = "layers.{i}.", HEAD + "layer."
DEEPSEEK = {
    "enorm": HEAD + "embed_norm",
    "hnorm": HEAD + "hidden_norm",
    "eh_proj": HEAD + "project",
    "shared_head.norm": HEAD + "norm",
}
"""After the beginning of the layer's names."""
MIMO = {**{k: v for k, v in DEEPSEEK.items() if k != "shared_head.norm"}, "final_layernorm": HEAD + "norm"}
QWEN = {
    "mtp.pre_fc_norm_embedding": HEAD + "embed_norm",
    "mtp.pre_fc_norm_hidden": HEAD + "hidden_norm",
    "mtp.fc": HEAD + "project",
    "mtp.norm": HEAD + "norm",
}
ERNIE = {
    "model.mtp_emb_norm.0": HEAD + "embed_norm",
    "model.mtp_hidden_norm.0": HEAD + "hidden_norm",
    "model.mtp_linear_proj.0": HEAD + "project",
}
SHARED = ("embed_tokens.*", "shared_head.head.*", "shared_head.weight")
"""Copies of the model's own table and head."""


@dataclass(frozen=True)
class Published:
    """Where a checkpoint has the layer."""

    begins: str
    """How the names of all of it begin."""
    layer: str
    """How those of the layer's own tensors do."""
    own: Mapping[str, str]
    """Names of norms and projection, and where these go."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Names that the model's layers have, and what the layer has for the same."""


def after_layers(
    model: CausalLM,
    c: Config,
    norm: Callable[[], nn.Module],
    layer: Callable[[], nn.Module],
    own: Mapping[str, str] = DEEPSEEK,
) -> CausalLM:
    """`model`, whose checkpoints number the layer as if it were one more, as num_nextn_predict_layers says."""
    if not c.get("num_nextn_predict_layers"):
        return model
    begins = f"model.layers.{c.num_hidden_layers}."
    published = Published(begins, begins, {begins + name: path for name, path in own.items()})
    return beside(model, c, norm, layer, published)


def beside(
    model: CausalLM,
    c: Config,
    norm: Callable[[], nn.Module],
    layer: Callable[[], nn.Module],
    published: Published,
    last_norm: nn.Module | None = None,
) -> CausalLM:
    """`model`, which may be given the layer that its checkpoints have beside it.

    Args:
        norm, layer: make a norm of rows, and the layer.
        published: where it is.
        last_norm: in place of one of its own.
    """

    def make() -> DraftHead:
        last = norm() if last_norm is None else last_norm
        return DraftHead(c.hidden_size, layer(), embed_norm=norm(), hidden_norm=norm(), norm=last)

    begins, layer_begins = published.begins, published.layer
    table: dict[str, str | Into] = dict(published.own)
    like = dict[str, str]()
    for key, into in model.names.table.items():
        name = key.partition(STEM)[2]
        if name and into.path.startswith(STEM):
            named = layer_begins + published.renamed.get(name, name)
            table[named] = into.with_path(PLACE + into.path.removeprefix(STEM))
            like[named] = key
    ignored = tuple(begins + name for name in SHARED)
    if layer_begins.endswith(".0."):
        ignored += tuple(f"{layer_begins.removesuffix('0.')}{i}.*" for i in range(1, MORE_LAYERS))
    model.predictor = Predictor(make, table, begins, ignored, like)
    return model


def in_chain(
    model: CausalLM, c: Config, norm: Callable[[], nn.Module], pieces: Sequence[Callable[[], nn.Module]]
) -> CausalLM:
    """`model`, whose layers are of one piece each; its predictor is several of them, named `mtp.layers` (Nemotron-H).

    The first has the norms of what is read beside it, the last one that of what it gives.
    """

    def make() -> DraftHead:
        chain = LayerChain([PreNorm(norm, mixer=piece()) for piece in pieces])
        return DraftHead(c.hidden_size, chain, embed_norm=norm(), hidden_norm=norm(), norm=norm())

    last = len(pieces) - 1
    table: dict[str, str | Into] = {f"mtp.layers.0.{k}": DEEPSEEK[k] for k in ("enorm", "hnorm", "eh_proj")}
    table[f"mtp.layers.{last}.final_layernorm"] = HEAD + "norm"
    for key, into in model.names.table.items():
        name = key.partition(STEM)[2]
        if name and into.path.startswith(STEM):
            table[f"mtp.layers.{{i}}.{name}"] = into.with_path(PLACE + into.path)
    model.predictor = Predictor(make, table, "mtp.")
    return model
