"""Speculation's options, by vLLM's names: how tokens ahead are guessed, to be computed together."""

import ast
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from octavo.errors import ConfigError, did_you_mean
from octavo.option_types import as_mapping

METHODS = ("ngram", "suffix", "draft_model", "mtp", "eagle", "eagle3", "medusa")
NGRAM_NAMES = ("ngram", "[ngram]", "prompt_lookup", "ngram_gpu")
MTP_NAMES = (
    "mtp",
    "deepseek_mtp",
    "ernie_mtp",
    "glm4_moe_lite_mtp",
    "glm4_moe_mtp",
    "hy_v3_mtp",
    "mimo_v2_mtp",
    "nemotron_h_mtp",
    "qwen3_5_mtp",
    "qwen3_next_mtp",
)
"""vLLM's names for the layers that checkpoints have: those of families that are here."""
MTP_NOT_HERE = (
    "bailing_hybrid_mtp",
    "exaone4_5_mtp",
    "exaone_moe_mtp",
    "gemma4_mtp",
    "glm_ocr_mtp",
    "longcat_flash_mtp",
    "mimo_mtp",
    "minimax_m3_mtp",
    "pangu_ultra_moe_mtp",
    "step3p5_mtp",
)
"""And of others."""
NOT_HERE = (
    "mlp_speculator",
    "dflash",
    "extract_hidden_states",
)
"""vLLM's other methods."""
IGNORED = (
    *("draft_tensor_parallel_size", "disable_logprobs", "disable_padded_drafter_batch", "enforce_eager"),
    *("draft_sample_method", "use_local_argmax_reduction", "attention_backend", "moe_backend", "code_revision"),
    *("tokenizer", "rejection_sample_method", "parallel_drafting", "tensor_parallel_size"),
)
"""vLLM's keys that change nothing here: how guesses are computed, and chosen, shows in no answer."""
SYNTHETIC = "guesses would count as right that are not; leave it out"
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "parallel_drafting": (
        bool,
        "models that guess several tokens at once are not read; leave it out",
    ),
    "rejection_sample_method": (lambda given: given == "synthetic", SYNTHETIC),
    "synthetic_acceptance_rate": (lambda given: True, SYNTHETIC),
    "synthetic_acceptance_rates": (lambda given: True, SYNTHETIC),
    "synthetic_acceptance_length": (lambda given: True, SYNTHETIC),
    "tensor_parallel_size": (
        lambda given: given != 1,
        "a draft model is computed by one rank, and heads by all that the model has; leave it out",
    ),
}
"""Keys, with which of their values would mean what is not here; and what is to be done."""
BY_NAME = {"eagle3": "eagle3", "eagle-": "eagle"}
"""What a head's name has in it, where no method is given, as vLLM reads it."""


@dataclass(frozen=True)
class SpeculativeConfig:
    """What of speculation was asked for, checked."""

    method: str
    """ngram: what followed the last tokens where they stood before (prompt lookup). suffix: what followed them most
    often, in earlier answers too. draft_model: a smaller model. mtp:
    the layer that the model's checkpoint has for it (multi-token prediction). eagle, eagle3: a head of a folder of its
    own, which reads what the model makes of tokens. medusa: such heads, one for each token."""
    num_speculative_tokens: int
    """Most tokens that are guessed at a time."""
    model: str | None = None
    """The smaller model, or the head, as `model` names one."""
    revision: str | None = None
    quantization: str | None = None
    dtype: str = "auto"
    max_model_len: int | None = None
    """Of a draft model: longer texts are not guessed at; None for as long as both models take."""
    draft_load_config: dict[str, Any] | None = None
    """How a draft model is read: load_format and download_dir, where they are not the engine's."""
    prompt_lookup_max: int = 5
    """How many of the last tokens are looked for, at most."""
    prompt_lookup_min: int = 5
    """And at least."""
    suffix_decoding_max_tree_depth: int = 24
    """Most tokens of likeness and guess together."""
    suffix_decoding_max_cached_requests: int = 10000
    """How many earlier answers are looked in at most; 0 for none."""
    suffix_decoding_max_spec_factor: float = 1.0
    """How many tokens are guessed at most, for each of the last ones that stood before."""
    suffix_decoding_min_token_prob: float = 0.1
    """Guesses whose share of what has followed is smaller are not made."""
    disable_by_batch_size: int | None = None
    """From how many running sequences on nothing is guessed."""

    @property
    def keeps_keys(self) -> bool:
        """Whether who guesses has keys in the model's own blocks."""
        return self.method in KEEP_KEYS

    @property
    def reads_hidden(self) -> bool:
        """Whether who guesses reads what the model makes of tokens."""
        return self.method in HEADS

    @property
    def is_of_folder(self) -> bool:
        """Whether that is a head of a folder of its own."""
        return self.method in HEADS and self.method in OF_FOLDERS


KEEP_KEYS = ("mtp", "eagle", "eagle3")
HEADS = ("mtp", "eagle", "eagle3", "medusa")
"""Methods that read what the model makes of tokens."""
OF_FOLDERS = ("draft_model", "eagle", "eagle3", "medusa")
"""Methods that need a model, or a head, of a folder of its own."""
MOST_DRAFTS = 256
MOST_TREE = 1 << 16
"""Characters of a tree of guesses that are read."""
LOAD_KEYS = ("load_format", "download_dir")
DEFAULT_DRAFTS = {"ngram": 8, "suffix": 12, "draft_model": 4, "mtp": 3, "eagle": 4, "eagle3": 4, "medusa": 4}
MOST = {
    "num_speculative_tokens": MOST_DRAFTS,
    "max_model_len": 1 << 31,
    "prompt_lookup_min": 1 << 16,
    "prompt_lookup_max": 1 << 16,
    "suffix_decoding_max_tree_depth": 1 << 10,
    "disable_by_batch_size": 1 << 16,
}
"""Keys that are numbers, and the largest that each may be."""


def speculative_config(given: Any, where: str = "speculative_config") -> SpeculativeConfig:
    """The options in a dict, or in JSON. Raises ConfigError, which names what is wrong with them."""
    values = {key.replace("-", "_"): value for key, value in as_mapping(given, where).items() if value is not None}
    method = _method(values, where)
    _leave_out(values, where)
    _take_chain(values, where)
    names = [f.name for f in dataclasses.fields(SpeculativeConfig)]
    for key in values:
        if key not in names:
            raise ConfigError(
                f"{where} has an unknown key {key!r}.{did_you_mean(key, names)} It takes {', '.join(names)}."
            )
    values["method"] = method
    values.setdefault("num_speculative_tokens", DEFAULT_DRAFTS[method])
    for key, most in MOST.items():
        if key in values and (type(values[key]) is not int or not 1 <= values[key] <= most):
            raise ConfigError(f"{where}: {key}={values[key]!r} must be a whole number from 1 to {most}.")
    _check_suffix(values, where)
    lookups = ("prompt_lookup_min", "prompt_lookup_max")
    for one, other in (lookups, lookups[::-1]):
        if one in values:
            values.setdefault(other, values[one])
    for key in ("model", "revision", "quantization", "dtype"):
        if key in values and not isinstance(values[key], str):
            raise ConfigError(f"{where}: {key}={values[key]!r} must be a text.")
    _check_load(values.get("draft_load_config", {}), where)
    if method in HEADS and (given := next((key for key in ("quantization", "dtype") if key in values), None)):
        raise ConfigError(f"{where}: {given}={values[given]!r}: a head is held as the model is; leave it out.")
    config = SpeculativeConfig(**values)
    if config.prompt_lookup_min > config.prompt_lookup_max:
        raise ConfigError(
            f"{where}: prompt_lookup_min={config.prompt_lookup_min} is more than "
            f"prompt_lookup_max={config.prompt_lookup_max}."
        )
    return config


def _leave_out(values: dict[str, Any], where: str) -> None:
    """Take out what changes nothing. Raises ConfigError for what would mean something that is not here."""
    for key, (refused, why) in REFUSED.items():
        if key in values and refused(values[key]):
            raise ConfigError(f"{where}: {key}={values[key]!r}: {why}.")
    for key in IGNORED:
        values.pop(key, None)


def _take_chain(values: dict[str, Any], where: str) -> None:
    """vLLM's way of saying num_speculative_tokens by a tree of guesses, where that is one chain."""
    if (tree := values.pop("speculative_token_tree", None)) is None:
        return
    try:
        paths = ast.literal_eval(tree) if isinstance(tree, str) and len(tree) < MOST_TREE else tree
        count = len(paths)
        is_chain = [list(path) for path in paths] == [[0] * size for size in range(1, count + 1)]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        count, is_chain = 0, False
    if not is_chain or not 1 <= count <= MOST_DRAFTS:
        raise ConfigError(
            f"{where}: speculative_token_tree={tree!r:.80}: guesses are one chain, such as '[(0,), (0, 0)]'; give "
            "num_speculative_tokens."
        )
    if values.setdefault("num_speculative_tokens", count) != count:
        raise ConfigError(
            f"{where}: num_speculative_tokens={values['num_speculative_tokens']!r} and speculative_token_tree, with "
            f"{count} tokens, contradict each other."
        )


def _check_load(given: Any, where: str) -> None:
    """Raises ConfigError for a draft_load_config that says more than how a model's files are found."""
    if not isinstance(given, dict) or not all(isinstance(value, str | None) for value in given.values()):
        raise ConfigError(f"{where}: draft_load_config={given!r:.80} must be a dict of texts.")
    if more := next((key for key in given if key not in LOAD_KEYS), None):
        raise ConfigError(f"{where}: draft_load_config has {more!r}; it takes {' and '.join(LOAD_KEYS)}.")


def _check_suffix(values: dict[str, Any], where: str) -> None:
    """Raises ConfigError for a value that suffix decoding has no meaning for."""
    kept = values.get("suffix_decoding_max_cached_requests", 0)
    if type(kept) is not int or kept < 0:
        raise ConfigError(f"{where}: suffix_decoding_max_cached_requests={kept!r} must be a whole number from 0 on.")
    for key, most in (("suffix_decoding_max_spec_factor", 256), ("suffix_decoding_min_token_prob", 1)):
        value = values.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ConfigError(f"{where}: {key}={value!r} must be a number from 0 to {most}.")


def _method(values: dict[str, Any], where: str) -> str:
    """The method that is meant, taken out of `values`; a model alone means a draft model, or a head by its name."""
    method, model = values.pop("method", None), values.get("model")
    if model in NGRAM_NAMES and method in (None, *NGRAM_NAMES):
        method = values.pop("model")
    if method is None and model is not None:
        name = str(model).rstrip("/").rpartition("/")[2].lower()
        method = next((meant for part, meant in BY_NAME.items() if part in name), "draft_model")
    method = "ngram" if method in NGRAM_NAMES else method
    method = "mtp" if method in MTP_NAMES else method
    known = f"{', '.join(METHODS[:-1])} or {METHODS[-1]}"
    if method is None:
        raise ConfigError(f"{where} names no method: give one of {known}, or the model of draft_model.")
    if method in (*NOT_HERE, *MTP_NOT_HERE):
        raise ConfigError(f"{where}: method={method!r} is not supported; give {known}.")
    if method not in METHODS:
        raise ConfigError(f"{where}: method={method!r} is unknown; give {known}.{did_you_mean(str(method), METHODS)}")
    if method != "mtp" and (method in OF_FOLDERS) != (values.get("model") is not None):
        what = "needs a model to draft with" if method in OF_FOLDERS else "takes no model"
        raise ConfigError(f"{where}: method={method!r} {what}.")
    return str(method)
