"""Solar Pro (Kim et al. 2024): Llama's body, with hidden states that later layers mix back in."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from octavo.architectures.decoder import attention, decoder, gated_mlp, rms_norm
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.errors import CheckpointError
from octavo.ops import Backend
from octavo.parts import Batch, CausalLM, PreNorm


class SkippingLayer(PreNorm):
    """A layer before which the stream is kept under names, and mixed with what was kept under others.

    Args:
        norm, pieces: as PreNorm's.
        keeps, mixes: names, of which a later layer's replaces an earlier one's.
        share: of what was kept in the mixture.
    """

    def __init__(
        self,
        norm: Callable[[], nn.Module],
        keeps: Sequence[str],
        mixes: Sequence[str],
        share: float,
        **pieces: nn.Module,
    ) -> None:
        super().__init__(norm, scale=1.0, **pieces)
        self.keeps, self.mixes, self.share = keeps, mixes, share

    def prepare(self, backend: Backend) -> None:
        super().prepare(backend)
        self._scale = backend.scale

    def forward(self, x: Tensor, batch: Batch) -> Tensor:
        for name in self.keeps:
            batch.kept[name] = x
        for name in self.mixes:
            x = self._add(self._scale(x, 1 - self.share), batch.kept[name], self.share)
        return super().forward(x, batch)


SKIPS = {"bskcn_1": "bskcn_3", "bskcn_2": "bskcn_4"}
"""Keys of the layers that keep the stream, and of those that mix it in."""


@architecture("SolarForCausalLM", about="Solar Pro", examples=("upstage/solar-pro-preview-instruct",))
def solar(c: Config) -> CausalLM:
    share = c.bskcn_tv[1]  # the first is for training
    norm, mlp, bias = rms_norm(c), gated_mlp(c, c.mlp_bias), c.attention_bias
    attn = attention(c, window=c.get("sliding_window"), bias=bias, out_bias=bias)
    kept: dict[str, list[int]] = {key: c.get(key, []) for key in SKIPS}
    mixed: dict[str, list[int]] = {key: c.get(by, []) for key, by in SKIPS.items()}
    for key, layers in mixed.items():
        if early := [i for i in layers if i < min([*kept[key], c.num_hidden_layers])]:
            raise CheckpointError(
                f"config.json: {SKIPS[key]} mixes in layer {early[0]} what no layer of {key} has kept."
            )

    def layer(i: int) -> SkippingLayer:
        keeps, mixes = ([key for key in SKIPS if i in layers[key]] for layers in (kept, mixed))
        return SkippingLayer(norm, keeps, mixes, share, attn=attn(i), mlp=mlp())

    return decoder(c, norm, layer)
