"""GLM-4 under transformers' names (GLM Team 2024): neighbours rotate in half of each head; 0414: four norms."""

from octavo.architectures.decoder import NAMES, attention, decoder, gated_mlp, rms_norm
from octavo.architectures.gguf_format import GGUFFormat, input_biases
from octavo.architectures.model_config import Config
from octavo.architectures.registry import architecture
from octavo.parts import CausalLM, Names, PreNorm, SandwichNorm

GLM_NAMES = NAMES.replacing({"model.layers.{i}.mlp.gate_up_proj": "layers.{i}.mlp.gate_up"})
GLM4_NAMES = GLM_NAMES.extended(
    {
        "model.layers.{i}.post_self_attn_layernorm": "layers.{i}.attn_post_norm",
        "model.layers.{i}.post_mlp_layernorm": "layers.{i}.mlp_post_norm",
    }
)


def body(c: Config, wiring: type[PreNorm], names: Names) -> CausalLM:
    norm, mlp = rms_norm(c), gated_mlp(c)
    attn = attention(c, interleaved=True, bias=c.attention_bias)
    return decoder(c, norm, lambda i: wiring(norm, attn=attn(i), mlp=mlp()), names)


@architecture("GlmForCausalLM", about="GLM-4 9B, GLM-Edge", examples=("zai-org/glm-4-9b-chat-hf",), read_as="chatglm")
def glm(c: Config) -> CausalLM:
    return body(c, PreNorm, GLM_NAMES)


@architecture(
    "Glm4ForCausalLM",
    about="GLM-4-0414, GLM-Z1",
    examples=("zai-org/GLM-4-32B-0414", "zai-org/GLM-Z1-9B-0414"),
    gguf=GGUFFormat("glm4", config=lambda shared, file: input_biases(file)),
)
def glm4(c: Config) -> CausalLM:
    return body(c, SandwichNorm, GLM4_NAMES)
