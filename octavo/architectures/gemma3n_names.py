"""Where the tensors of Gemma 3n go."""

from octavo.architectures.gemma4_names import PER_LAYER_NAMES
from octavo.parts import parameter

LAYER, HERE = "model.layers.{i}.", "layers.{i}."
GEMMA3N_NAMES = PER_LAYER_NAMES.replacing(
    {
        "model.norm": "norm.norm",
        "model.altup_projections.{n}": "embed.streams.{n}",
        "model.altup_unembed_projections.{n}": "norm.streams.{n}",
        LAYER + "altup.modality_router": HERE + "altup.router",
        LAYER + "altup.prediction_coefs": HERE + "altup.mix",
        LAYER + "altup.correction_coefs": HERE + "altup.gain",
        LAYER + "altup.correct_output_scale": parameter(HERE + "altup.scale"),
        # Rows are divided by their size, too.
        LAYER + "altup.router_norm.weight": parameter(HERE + "altup.router_norm.weight", lambda w: w / len(w)),
        LAYER + "laurel.linear_{left|right}": HERE + "laurel.{left|right}",
        LAYER + "laurel.post_laurel_norm": HERE + "laurel.norm",
    }
)
