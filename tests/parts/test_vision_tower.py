"""CLIP's and SigLIP's towers against transformers' own modules, and attention with what towers ask of it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

from octavo.architectures.model_config import Config
from octavo.architectures.vision_config import tower_names, vision_tower
from octavo.ops import Backend, select_backend
from octavo.parts import EncoderAttention, Names, QKNorm, RMSNorm, SpanBatch, VisionSizes
from octavo.parts.weight_slots import Role, weight_slots

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_hidden_layers": 3}
KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "clip": (CLIPVisionModel, CLIPVisionConfig, {"image_size": 56, "patch_size": 14}),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, {"image_size": 46, "patch_size": 14, "vision_use_head": False}),
}


@pytest.fixture(params=["torch", "native"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return select_backend("cpu", request.param)


def fill(part: nn.Module, tensors: dict[str, Tensor], backend: Backend) -> None:
    """Give a part its weights, by their paths in it, and have it made ready."""
    for path, slot in weight_slots(part).items():
        pieces = [tensors.pop(path)] if path in tensors else []
        owner, _, kind = path.rpartition(".")
        pieces = pieces or [tensors.pop(f"{owner}.{name}.{kind}") for name in slot.segments]
        whole = torch.cat(pieces)
        slot.load(backend.linear(whole) if slot.role in (Role.MULTIPLIED, Role.EXACT) else whole)
    for module in part.modules():
        if (prepare := getattr(module, "prepare", None)) is not None:
            prepare(backend)


def placed(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    names = Names(tower_names(path="media"))
    for name, tensor in model.state_dict().items():
        into = names.locate(f"vision_tower.{name}")
        assert into is not None, name
        yield into.path.removeprefix("media."), tensor if into.transform is None else into.transform(tensor)


@pytest.mark.parametrize("states", [(-1,), (-2,), (0,), (-3, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_reference_s(kind: str, states: tuple[int, ...], backend: Backend) -> None:
    model_class, config_class, more = KINDS[kind]
    torch.manual_seed(1)
    reference = model_class(config_class(**SIZES, **more)).eval()
    for parameter in reference.parameters():
        nn.init.normal_(parameter, std=0.3)
    section = Config({"model_type": f"{kind}_vision_model", **SIZES, **more}, path="vision_config.")
    tower = vision_tower(section, states=states)
    fill(tower, dict(placed(reference)), backend)
    pictures = [torch.randn(3, more["image_size"], more["image_size"]) for _ in range(3)]
    # With hooks, as what transformers calls the last hidden states has a norm more in some releases.
    seen: list[Tensor] = []
    layers = next(m for m in reference.modules() if isinstance(m, nn.ModuleList))
    layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    for layer in layers:
        layer.register_forward_hook(lambda _, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    reference(torch.stack(pictures))
    expected = torch.cat([seen[i] for i in states], dim=-1)
    got = tower(pictures, torch.float32)
    assert tower.output_size == expected.shape[-1]
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=1e-4)
    alone = tower(pictures[1:2], torch.float32)[0]
    assert torch.equal(alone, got[1])


def test_states_that_a_tower_lacks() -> None:
    sizes = VisionSizes(32, 48, 3, 2, 56, 14, "gelu", 1e-6)
    assert [sizes.state_index(number) for number in (-1, -4, 0, 3)] == [3, 0, 0, 3]
    for number in (4, -5):
        with pytest.raises(ValueError, match=f"no hidden states {number}"):
            sizes.state_index(number)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    cos, sin = cos[:, None], sin[:, None]
    pairs = cos.shape[-1]
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :pairs], x[..., pairs:])
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("full_width", [False, True])
def test_attention_with_norms_and_rope(interleaved: bool, full_width: bool, backend: Backend) -> None:
    torch.manual_seed(2)
    heads, head_dim, hidden = 3, 8, 20
    norms = [RMSNorm(heads * head_dim if full_width else head_dim, 1e-6) for _ in range(2)]
    attn = EncoderAttention(
        *(hidden, heads),
        head_dim=head_dim,
        bias=True,
        out_bias=False,
        qk_norm=QKNorm(*norms, full_width=full_width),
        interleaved=interleaved,
    )
    tensors = {path: torch.randn(slot.shape) for path, slot in weight_slots(attn).items()}
    fill(attn, dict(tensors), backend)
    assert "o.bias" not in tensors
    x, runs = torch.randn(7, hidden), [(0, 4), (4, 3)]
    angles = torch.randn(7, head_dim // 2)
    got = attn(x, SpanBatch(runs, angles=(angles.cos(), angles.sin())))

    q, k, v = (x @ tensors["qkv.weight"].T + tensors["qkv.bias"]).view(7, 3, heads, head_dim).unbind(1)

    def normed(y: Tensor, weight: Tensor) -> Tensor:
        flat = y.flatten(1) if full_width else y
        return (flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + 1e-6) * weight).view(y.shape)

    q, k = normed(q, tensors["qk_norm.q.weight"]), normed(k, tensors["qk_norm.k.weight"])
    q, k = (rotated(y, angles.cos(), angles.sin(), interleaved) for y in (q, k))
    out = []
    for first, count in runs:
        part = slice(first, first + count)
        weights = torch.softmax(torch.einsum("qhd,khd->hqk", q[part], k[part]) * head_dim**-0.5, -1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v[part]).flatten(1))
    torch.testing.assert_close(got, torch.cat(out) @ tensors["o.weight"].T, atol=1e-4, rtol=1e-4)
