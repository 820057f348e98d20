"""Mono-InternVL's text (Luo et al. 2024): InternLM2, in which rows of pictures have feed-forwards of their own."""

from torch import Tensor, nn

from octavo.architectures.decoder import gated_mlp
from octavo.architectures.exaone import internlm2
from octavo.architectures.model_config import Config
from octavo.parts import Batch, CausalLM, GatedMLP


class PictureExperts(nn.Module):
    """A feed-forward for rows of tokens, and another for those of pictures."""

    def __init__(self, tokens: GatedMLP, pictures: GatedMLP) -> None:
        super().__init__()
        self.tokens, self.pictures = tokens, pictures

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        y: Tensor = self.tokens(x, batch)
        if batch.features is None:
            return y
        index = batch.features.index
        return y.index_copy(0, index, self.pictures(x[index], batch.of_rows(index)))


def internlm2_ve(c: Config) -> CausalLM:
    """InternLM2 with feed-forwards of pictures' own in every layer."""
    model, mlp = internlm2(c), gated_mlp(c)
    for layer in model.layers:
        layer.mlp = PictureExperts(layer.mlp, mlp())  # type: ignore[arg-type]
    own = {
        f"model.layers.{{i}}.{published}.{{w1|w3|w2}}": f"layers.{{i}}.mlp.{path}.{{gate_up.gate|gate_up.up|down}}"
        for published, path in (("feed_forward", "tokens"), ("feed_forward_ve", "pictures"))
    }
    kept = {name: into for name, into in model.names.table.items() if ".feed_forward." not in name}
    model.names = type(model.names)({**kept, **own}, prefix=model.names.prefix)
    return model
