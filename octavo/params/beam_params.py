"""What a beam search asks for."""

from dataclasses import dataclass

from octavo.errors import InvalidRequestError, names_closest
from octavo.option_types import check_types
from octavo.params.checks import check_range, reject
from octavo.params.structured_params import StructuredOutputsParams


@names_closest
@dataclass
class BeamSearchParams:
    """Beam search: the `beam_width` sequences of the highest log-probability over length ** length_penalty.

    The length is that of the answer, with its end-of-sequence token. With `allowed_token_ids` beams are made of these
    tokens alone, whose log-probabilities stay as the model has them.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    watermarking: bool | None = None
    allowed_token_ids: list[int] | None = None

    def __post_init__(self) -> None:
        check_types(self, InvalidRequestError)
        if self.structured_outputs is not None:
            reject("beam search follows no structured_outputs; use generate with n and best_of.")
        if self.watermarking:
            reject("watermarking=True is not available: answers carry no watermark. Leave it out.")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            reject("allowed_token_ids is empty: no token could ever be chosen. Leave it out to allow all.")
        check_range("beam_width", self.beam_width, int, 1)
        check_range("max_tokens", self.max_tokens, int, 1)
        check_range("temperature", self.temperature, float, 0)
