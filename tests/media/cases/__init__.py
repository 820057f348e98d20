"""Golden cases of rows with media: a tiny model each, with what the reference's processor makes and answers."""

import json
from pathlib import Path
from typing import Any

from octavo.media.processor import Processor, ProcessorFiles, read_processor_files
from octavo.media.processors.blip2 import Blip2Processor
from octavo.media.processors.chameleon import ChameleonProcessor
from octavo.media.processors.fuyu import FuyuProcessor
from octavo.media.processors.glm4v import GLM4VProcessor
from octavo.media.processors.idefics3 import Idefics3Processor
from octavo.media.processors.internvl import H2OVLProcessor, InternVLProcessor, NVLMProcessor
from octavo.media.processors.llava import LlavaProcessor
from octavo.media.processors.llava_next import LlavaNextProcessor, LlavaNextVideoProcessor
from octavo.media.processors.llava_onevision import LlavaOnevisionProcessor
from octavo.media.processors.minicpmv import MiniCPMVProcessor
from octavo.media.processors.mllama import MllamaProcessor
from octavo.media.processors.molmo import MolmoProcessor
from octavo.media.processors.paligemma import PaliGemmaProcessor
from octavo.media.processors.phi3v import Phi3VProcessor
from octavo.media.processors.pixtral import MistralPixtralProcessor, PixtralProcessor
from octavo.media.processors.qwen2_audio import Qwen2AudioProcessor
from octavo.media.processors.qwen2_vl import Qwen2VLProcessor
from octavo.media.processors.qwen_vl import QwenVLProcessor
from octavo.media.processors.ultravox import UltravoxProcessor
from octavo.media.sounds import Sound
from octavo.text.tokenizer import load_tokenizer
from octavo.tools import recipe
from tests import golden

CASES = [path for path in golden.CASES if golden.has_media(golden.read_case(path))]
CASES += sorted(Path(__file__).parent.glob("*.json"))
PROCESSORS: dict[str, type[Processor]] = {
    "Blip2ForConditionalGeneration": Blip2Processor,
    "ChameleonForConditionalGeneration": ChameleonProcessor,
    "ChatGLMModel": GLM4VProcessor,
    "FuyuForCausalLM": FuyuProcessor,
    "H2OVLChatModel": H2OVLProcessor,
    "Idefics3ForConditionalGeneration": Idefics3Processor,
    "InternVLChatModel": InternVLProcessor,
    "LlavaForConditionalGeneration": LlavaProcessor,
    "LlavaNextForConditionalGeneration": LlavaNextProcessor,
    "LlavaNextVideoForConditionalGeneration": LlavaNextVideoProcessor,
    "LlavaOnevisionForConditionalGeneration": LlavaOnevisionProcessor,
    "MiniCPMV": MiniCPMVProcessor,
    "MllamaForConditionalGeneration": MllamaProcessor,
    "MolmoForCausalLM": MolmoProcessor,
    "NVLM_D_Model": NVLMProcessor,
    "PaliGemmaForConditionalGeneration": PaliGemmaProcessor,
    "Phi3VForCausalLM": Phi3VProcessor,
    "PixtralForConditionalGeneration": MistralPixtralProcessor,
    "QWenLMHeadModel": QwenVLProcessor,
    "Qwen2AudioForConditionalGeneration": Qwen2AudioProcessor,
    "Qwen2VLForConditionalGeneration": Qwen2VLProcessor,
    "UltravoxModel": UltravoxProcessor,
}


def read_case(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    return case


def path_of(name: str) -> Path:
    """The case of this row and variant, or the first that begins so."""
    return next(path for path in CASES if path.stem.startswith(name))


def load(case: dict[str, Any], folder: Path, changes: dict[str, Any] | None = None, **options: Any) -> Processor:
    """The processor of a case, whose files are written to `folder`; `changes` are of preprocessor_config.json."""
    for name, text in case["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text if isinstance(text, str) else json.dumps(text))
    made = PROCESSORS[case["row"]]
    if "pixtral" in str(case["config"].get("vision_config")):
        made = PixtralProcessor
    files = read_processor_files(folder, case["config"])
    files = ProcessorFiles(files.config, {**files.preprocessor, **(changes or {})}, files.processor, files.video)
    tokenizer = load_tokenizer(folder, False) if (folder / "tokenizer.json").exists() else None
    return made(files, tokenizer, **options)


def media(case: dict[str, Any]) -> dict[str, list[Any]]:
    """What a case's recipes give, decoded: images, videos and audios."""
    data = recipe.media(case)
    return {
        "images": data.get("image", []),
        "videos": data.get("video", []),
        "audios": [Sound(*sound) for sound in data.get("audio", [])],
    }
