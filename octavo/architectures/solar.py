"""Solar Pro (Kim et al. 2024): Llama's body, with hidden states that later layers mix back in."""

from torch import Tensor, nn

from octavo.architectures.llama import ATTENTION_NAMES, IGNORED, MLP_NAMES, gated_mlp, llama_body
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import CheckpointError
from octavo.parts import Batch, Block, CausalLM, Names, Residual


class Keep(nn.Module):
    """Remembers the stream under a name; a later one of the same name replaces it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        batch.kept[self.name] = x
        return x


class MixBack(nn.Module):
    """`share * kept + (1 - share) * x`."""

    def __init__(self, name: str, share: float) -> None:
        super().__init__()
        self.name, self.share = name, share

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        return batch.kept[self.name] * self.share + x * (1 - self.share)


NAMES = Names({**ATTENTION_NAMES, **MLP_NAMES}, IGNORED, prefix="model.")


@architecture("SolarForCausalLM", about="Solar Pro", examples=("upstage/solar-pro-preview-instruct",))
def solar(c: Config) -> CausalLM:
    share = c.bskcn_tv[1]  # the first is for training
    bias = c.attention_bias

    for saves, mixes in (("bskcn_1", "bskcn_3"), ("bskcn_2", "bskcn_4")):
        first, last = min(c.get(saves, []), default=c.num_hidden_layers), c.num_hidden_layers
        mixed: list[int] = c.get(mixes, [])
        if early := [layer for layer in mixed if layer < min(first, last)]:
            raise CheckpointError(f"config.json: {mixes} mixes in layer {early[0]} what no layer of {saves} has kept.")

    def skips(layer: int) -> dict[str, nn.Module]:
        """What happens to the stream before the layer."""
        pieces: dict[str, nn.Module] = {}
        for kept, saves, mixes in (("first", "bskcn_1", "bskcn_3"), ("second", "bskcn_2", "bskcn_4")):
            if layer in c.get(saves, []):
                pieces[f"keep_{kept}"] = Keep(kept)
            if layer in c.get(mixes, []):
                pieces[f"mix_{kept}"] = MixBack(kept, share)
        return dict(sorted(pieces.items()))  # all that is kept is kept before anything is mixed

    def wire(i: int, attention: Residual, mlp: Residual) -> nn.Module:
        return Block(**skips(i), attention=attention, mlp=mlp)

    return llama_body(
        c,
        mlp=gated_mlp(c, c.mlp_bias),
        names=NAMES,
        layer=wire,
        window=lambda layer: c.get("sliding_window"),
        bias=bias,
        out_bias=bias,
    )
