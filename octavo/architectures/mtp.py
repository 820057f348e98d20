"""Layers that predict further tokens, as checkpoints have them beside the model (MTP): where each family's lie.

A family says which of its layers it is; norms and the projection around it are everybody's. Where a checkpoint has
several, the first is read.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from octavo.architectures.decoder import MORE_LAYERS
from octavo.architectures.model_config import Config
from octavo.parts import CausalLM, Into
from octavo.parts.draft_head import DraftHead, Predictor

NOTHING: Mapping[str, str] = MappingProxyType({})
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
    return beside(model, c, norm, layer, begins, begins, {begins + name: path for name, path in own.items()})


def beside(
    model: CausalLM,
    c: Config,
    norm: Callable[[], nn.Module],
    layer: Callable[[], nn.Module],
    begins: str,
    layer_begins: str,
    own: Mapping[str, str],
    *,
    last_norm: nn.Module | None = None,
    renamed: Mapping[str, str] = NOTHING,
) -> CausalLM:
    """`model`, which may be given the layer that its checkpoints have beside it.

    Args:
        norm, layer: make a norm of rows, and the layer.
        begins, layer_begins: how the published names of all of it begin, and those of the layer's tensors.
        own: published names of norms and projection.
        last_norm: in place of one of its own.
        renamed: names of the layer's modules, and those that the model's layers have for the same.
    """

    def make() -> DraftHead:
        last = norm() if last_norm is None else last_norm
        return DraftHead(c.hidden_size, layer(), embed_norm=norm(), hidden_norm=norm(), norm=last)

    table: dict[str, str | Into] = dict(own)
    for published, into in model.names.table.items():
        name = published.partition(STEM)[2]
        if name and into.path.startswith(STEM):
            table[layer_begins + renamed.get(name, name)] = into.with_path(PLACE + into.path.removeprefix(STEM))
    further = tuple(f"{layer_begins.removesuffix('0.')}{i}.*" for i in range(1, MORE_LAYERS))
    shared = tuple(begins + name for name in SHARED)
    model.predictor = Predictor(make, table, begins, shared + further if layer_begins.endswith(".0.") else shared)
    return model
