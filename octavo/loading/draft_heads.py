"""Heads that guess tokens from a model's hidden rows: which are read, and from where."""

import torch

from octavo.errors import ConfigError
from octavo.loading.checkpoint import Checkpoint, sound_config
from octavo.parts import CausalLM


def take_predictor(model: CausalLM, checkpoint: Checkpoint) -> None:
    """Have a model on the meta device take the layer that its checkpoint has for predicting further tokens (MTP).

    Raises ConfigError where there is none.
    """
    if checkpoint.gguf is not None:
        raise ConfigError(
            "speculative_config: method='mtp' reads the layer from safetensors files; those of GGUF are not read. "
            "Give the model's folder, or another method."
        )
    if model.predictor is None:
        raise ConfigError(
            f"speculative_config: method='mtp': {checkpoint.architecture.name} with this config.json has no layer that "
            "predicts further tokens. Give method='ngram', or the model of draft_model."
        )
    with sound_config(checkpoint.files.path, checkpoint.config), torch.device("meta"):
        model.guess_with(model.predictor.make())
    model.names = model.predictor.names(model.names)
