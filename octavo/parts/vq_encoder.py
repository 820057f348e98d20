"""The encoder of a VQ-GAN (Esser et al. 2021): convolutions that make a picture a small grid of codes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from octavo.ops import Backend
from octavo.parts.batch import SpanBatch
from octavo.parts.linear_layer import Linear

GROUPS, EPS = 32, 1e-6
STRIP = 1 << 24
"""Values of what a convolution sees that are held at a time."""


class Convolution(Linear):
    """A convolution of a feature map `[channels, height, width]` as a product of what it sees at each place.

    Args:
        inputs, outputs: channels.
        size: places along the side of what it sees, which the map is filled up for with zeros.
        stride: places from one to the next. Where it is 2, the map is filled up at the right and at the bottom alone.
    """

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__(inputs * size * size, outputs, True)
        self.size, self.stride = size, stride
        self.padding = (0, 1, 0, 1) if stride > 1 else (size // 2,) * 4

    def over(self, x: Tensor) -> Tensor:
        """`[outputs, height / stride, width / stride]` of `x`, a strip of lines after the other."""
        x = functional.pad(x, self.padding)
        height = (x.shape[1] - self.size) // self.stride + 1
        width = (x.shape[2] - self.size) // self.stride + 1
        lines = max(1, STRIP // (self.inputs * width))
        strips = []
        for first in range(0, height, lines):
            count = min(lines, height - first)
            seen = x[:, first * self.stride : (first + count - 1) * self.stride + self.size]
            rows = functional.unfold(seen.unsqueeze(0), self.size, stride=self.stride)[0].t().contiguous()
            strips.append(self(rows, SpanBatch([(0, len(rows))])))
        return torch.cat(strips).t().reshape(self.outputs, height, width)


class GroupNorm(nn.Module):
    """A norm over the places and over the channels of each of 32 groups."""

    float32_parameters = True

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels), requires_grad=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.group_norm(x.float().unsqueeze(0), GROUPS, self.weight, self.bias, EPS)
        return normed[0].to(x.dtype)


class _Activated(nn.Module):
    """What is normed and then goes through `x * sigmoid(x)`."""

    def prepare(self, backend: Backend) -> None:
        self._activate = backend.activate

    def activated(self, norm: nn.Module, x: Tensor) -> Tensor:
        normed: Tensor = norm(x)
        return self._activate(normed.flatten(1), "silu").view(x.shape)


class ResidualBlock(_Activated):
    """`shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))))))`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = GroupNorm(inputs), Convolution(inputs, outputs, 3)
        self.norm2, self.conv2 = GroupNorm(outputs), Convolution(outputs, outputs, 3)
        self.shortcut = Convolution(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1.over(self.activated(self.norm1, x))
        inner = self.conv2.over(self.activated(self.norm2, inner))
        return (x if self.shortcut is None else self.shortcut.over(x)) + inner


class PlaceAttention(nn.Module):
    """`x + proj(attention)`, in which every place sees all places, with a single head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = GroupNorm(channels)
        self.q, self.k, self.v, self.proj = (Convolution(channels, channels, 1) for _ in range(4))

    def prepare(self, backend: Backend) -> None:
        self._attention = backend.full_attention

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        query, key, value = (
            each.over(normed).flatten(1).t().unsqueeze(1).contiguous() for each in (self.q, self.k, self.v)
        )
        count = len(query)
        mixed = self._attention(query, key, value, self.channels**-0.5, [(0, count, 0, count)])
        return x + self.proj.over(mixed[:, 0].to(x.dtype).t().reshape(x.shape))


class Level(nn.Module):
    """Blocks of one resolution, each with attention behind it if the level has any, and what halves it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attends: bool, halves: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)])
        self.attn = nn.ModuleList([PlaceAttention(outputs) for _ in range(blocks if attends else 0)])
        self.downsample = Convolution(outputs, outputs, 3, stride=2) if halves else None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if self.attn else x
        return x if self.downsample is None else self.downsample.over(x)


class VQEncoder(_Activated):
    """Pictures to numbers of the nearest of so many codes.

    Args:
        channels: of pictures.
        base: channels of the first level.
        multipliers: of `base`, for each level's channels; each level but the last halves the picture.
        blocks: of a level.
        attending: whether each level attends, and at last the blocks behind them.
        latent, size: values of a place before it is compared, and of a code.
        num_codes: how many there are.
    """

    def __init__(
        self,
        channels: int,
        base: int,
        multipliers: Sequence[int],
        blocks: int,
        attending: Sequence[bool],
        latent: int,
        size: int,
        num_codes: int,
    ) -> None:
        super().__init__()
        self.conv_in = Convolution(channels, base, 3)
        widths = [base, *(base * multiplier for multiplier in multipliers)]
        last = len(multipliers) - 1
        self.down = nn.ModuleList(
            [Level(widths[i], widths[i + 1], blocks, attending[i], i < last) for i in range(last + 1)]
        )
        inner = widths[-1]
        middle = PlaceAttention(inner) if attending[-1] else nn.Identity()
        self.mid = nn.ModuleList([ResidualBlock(inner, inner), middle, ResidualBlock(inner, inner)])
        self.norm_out, self.conv_out = GroupNorm(inner), Convolution(inner, latent, 3)
        self.quant = Convolution(latent, size, 1)
        self.codes = nn.Parameter(torch.empty(num_codes, size), requires_grad=False)

    def forward(self, picture: Tensor) -> Tensor:
        """`[places]` int64, line by line, of a picture `[channels, height, width]` in the activations' dtype."""
        x = self.conv_in.over(picture)
        for part in (*self.down, *self.mid):
            x = part(x)
        x = self.quant.over(self.conv_out.over(self.activated(self.norm_out, x)))
        places, codes = x.flatten(1).t().float(), self.codes.float()
        distances = places.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * places @ codes.t()
        return distances.argmin(1)
