"""Run an unmodified script that imports vllm: `python -m octavo.compat.vllm script.py [arguments]`.

`import vllm` and the submodules that scripts use are answered with Octavo's classes of the same names.
"""

import runpy
import sys
import types
from pathlib import Path
from typing import Any

import octavo

_SUBMODULES: dict[str, dict[str, str]] = {
    "": {
        "LLM": "octavo.llm:LLM",
        "AsyncLLMEngine": "octavo.async_llm:AsyncLLM",
        "EngineArgs": "octavo.config:EngineArgs",
        "AsyncEngineArgs": "octavo.config:EngineArgs",
        "PoolerConfig": "octavo.config:PoolerConfig",
        **{name: f"octavo.params:{name}" for name in ("SamplingParams", "PoolingParams")},
        **{
            name: f"octavo.outputs:{name}"
            for name in (
                "RequestOutput",
                "CompletionOutput",
                "PoolingOutput",
                "PoolingRequestOutput",
                "EmbeddingOutput",
                "EmbeddingRequestOutput",
                "ClassificationOutput",
                "ClassificationRequestOutput",
                "ScoringOutput",
                "ScoringRequestOutput",
            )
        },
        "TextPrompt": "octavo.prompts:TextPrompt",
        "TokensPrompt": "octavo.prompts:TokensPrompt",
        "PromptType": "octavo.prompts:Prompt",
    },
    "sampling_params": {
        name: f"octavo.params:{name}"
        for name in (
            "SamplingParams",
            "BeamSearchParams",
            "RequestOutputKind",
            "StructuredOutputsParams",
            "GuidedDecodingParams",
        )
    },
    "pooling_params": {"PoolingParams": "octavo.params:PoolingParams"},
    "outputs": {
        name: f"octavo.outputs:{name}"
        for name in ("RequestOutput", "CompletionOutput", "PoolingOutput", "PoolingRequestOutput")
    },
    "inputs": {"TextPrompt": "octavo.prompts:TextPrompt", "TokensPrompt": "octavo.prompts:TokensPrompt"},
    "engine": {},
    "engine.arg_utils": {"EngineArgs": "octavo.config:EngineArgs", "AsyncEngineArgs": "octavo.config:EngineArgs"},
    "engine.async_llm_engine": {"AsyncLLMEngine": "octavo.async_llm:AsyncLLM"},
    "v1": {},
    "v1.engine": {},
    "v1.engine.async_llm": {"AsyncLLM": "octavo.async_llm:AsyncLLM"},
    "lora": {},
    "lora.request": {"LoRARequest": "octavo.lora:LoRARequest"},
    "config": {"PoolerConfig": "octavo.config:PoolerConfig"},
    "sequence": {"Logprob": "octavo.outputs:Logprob"},
    "logprobs": {"Logprob": "octavo.outputs:Logprob"},
}


class _Answer(types.ModuleType):
    """A module of vllm's, whose names are Octavo's."""

    def __init__(self, name: str, names: dict[str, str]) -> None:
        super().__init__(name, f"Octavo in place of {name}.")
        self.__path__: list[str] = []
        self._names = names
        self.__all__ = sorted(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in self._names:
            raise AttributeError(
                f"{self.__name__}.{name} has no counterpart in Octavo; there are {', '.join(self.__all__) or 'none'}."
            )
        module, _, attribute = self._names[name].partition(":")
        value = getattr(__import__(module, fromlist=[attribute]), attribute)
        setattr(self, name, value)
        return value


def install() -> None:
    """Answer `import vllm` with Octavo in this process."""
    for name, names in _SUBMODULES.items():
        full = f"vllm.{name}" if name else "vllm"
        module = sys.modules[full] = _Answer(full, names)
        parent, _, child = full.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    sys.modules["vllm"].__version__ = octavo.__version__  # type: ignore[attr-defined]


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        print(f"octavo: there is no script {script}.", file=sys.stderr)
        return 2
    install()
    sys.argv = arguments
    sys.path[0] = str(script.resolve().parent)
    runpy.run_path(str(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
