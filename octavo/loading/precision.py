"""In which number types a model is held and computed."""

import logging
from dataclasses import dataclass

import torch

from octavo.architectures import Config
from octavo.architectures.text_config import text_config
from octavo.config import STORED_QUANTIZATIONS, EngineArgs
from octavo.errors import ConfigError
from octavo.loading.formats import WeightFormat
from octavo.ops import Backend
from octavo.ops.paged_cache import INT4
from octavo.ops.weight_kinds import WeightKind
from octavo.parts.weight_slots import Role

log = logging.getLogger("octavo")

DTYPES = {
    "float32": torch.float32,
    "float": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}
CACHE_DTYPES = {**DTYPES, "int8": torch.int8, "int4": INT4}
ROUNDED = {"int8": WeightKind.Q8_0, "q4": WeightKind.Q4_1}
"""Quantizations of float checkpoints, by the kind that weights are rounded to."""


@dataclass(frozen=True)
class Precision:
    """Number types of a loaded model."""

    weights: torch.dtype
    """Of weights that are not kept as their file stores them, nor rounded."""
    activations: torch.dtype
    cache: torch.dtype
    """Of keys and values; octavo.ops.paged_cache.INT4 for codes of 4 bits."""
    as_stored: bool = False
    """Weights stay in the kinds in which their file has them, where it has kinds that the backend multiplies with."""
    round_to: WeightKind | None = None
    """The kind that weights are rounded to."""
    round_head_to: WeightKind | None = None
    """The same for the head and a tied token table, which lose more by it."""
    round_towers: bool = False
    """Whether the weights of towers are rounded as well."""

    @staticmethod
    def is_packed(role: Role) -> bool:
        """Whether weights of `role` are packed for computing."""
        return role not in (Role.FLOAT32, Role.ADDED)

    def dtype_of(self, role: Role) -> torch.dtype:
        """What values of `role` are held in, those aside that are kept or rounded."""
        if self.as_stored and role in (Role.MULTIPLIED, Role.EXACT, Role.HEAD):
            return torch.float16  # what is stored in a kind that no product is made with
        return {Role.FLOAT32: torch.float32, Role.ADDED: self.activations}.get(role, self.weights)

    def rounding_of(self, role: Role) -> WeightKind | None:
        """The kind that weights of `role` are rounded to; None where they are not."""
        if role in (Role.HEAD, Role.TIED):
            return self.round_head_to
        return self.round_to if role is Role.MULTIPLIED else None

    @staticmethod
    def is_fine(role: Role) -> bool:
        """Whether products with a quantized weight round rows to twice as many bits."""
        return role in (Role.HEAD, Role.TIED)


def choose_precision(args: EngineArgs, config: Config, backend: Backend, weights: WeightFormat) -> Precision:
    """What `args` ask for; `auto` is what the checkpoint is stored in.

    Raises ConfigError for a quantization that this checkpoint or machine cannot have.
    """
    can = backend.capabilities
    rounded = args.quantization if args.quantization in ROUNDED else None
    _check_method(args, weights)
    if rounded and not can.weight_kinds:
        raise ConfigError(
            f"quantization={rounded!r} needs the compiled core on a CPU; this runs on {backend.name}. "
            "Leave quantization out (and see `octavo env`)."
        )
    is_kept = args.dtype == "auto" or args.quantization is not None
    as_stored = weights.as_stored and bool(can.weight_kinds) and is_kept
    held = _held(args.dtype, config, backend, "bfloat16" if weights.as_stored else "float32")
    computed = held
    if ((as_stored or rounded) and not can.any_rows_meet_kinds) or held not in can.row_dtypes:
        computed = torch.float32
    if as_stored and args.dtype != "auto":
        computed = held
    cache = held if args.kv_cache_dtype == "auto" else CACHE_DTYPES[args.kv_cache_dtype]
    return Precision(
        weights=held,
        activations=computed,
        cache=cache,
        as_stored=as_stored,
        round_to=ROUNDED[rounded] if rounded else None,
        round_head_to=WeightKind.Q8_0 if rounded else None,
        round_towers=args.quantize_towers,
    )


def _check_method(args: EngineArgs, weights: WeightFormat) -> None:
    """Raises ConfigError for a quantization that is not the checkpoint's, or that would come on top of it."""
    given = args.quantization
    if given in ROUNDED and weights.as_stored:
        stored = "is a GGUF file" if weights.name == "gguf" else f"is quantized already ({weights.name})"
        raise ConfigError(
            f"quantization={given!r}: {args.model} {stored}; its weights are used as they are. "
            "Leave quantization out, or give a checkpoint of floats."
        )
    if given is None or given in ROUNDED or weights.name in STORED_QUANTIZATIONS[given]:
        return
    if given == "gguf":
        raise ConfigError(f"quantization='gguf': {args.model} is not a GGUF file. Leave quantization out.")
    is_quantized = any(weights.name in names for names in STORED_QUANTIZATIONS.values())
    raise ConfigError(
        f"quantization={given!r}: the weights of {args.model} are "
        f"{f'quantized with {weights.name}' if is_quantized else 'not quantized'}. Leave quantization out"
        f"{'' if is_quantized else ', or say int8 or q4, to which they are rounded as they load'}."
    )


def _held(requested: str, config: Config, backend: Backend, default: str) -> torch.dtype:
    """The requested dtype; for auto the checkpoint's own, or `default` where its config does not say."""
    if requested != "auto":
        dtype = DTYPES[requested]
        if dtype == torch.float16 and dtype not in backend.capabilities.dtypes:
            raise ConfigError("dtype='float16' needs the compiled core on a CPU. Use dtype='auto', or bfloat16.")
        return dtype
    of_text = text_config(config).first("dtype", "torch_dtype", default=default)
    stored = str(config.first("dtype", "torch_dtype", default=of_text))
    dtype = DTYPES.get(stored.removeprefix("torch."), torch.float32)
    if dtype not in backend.capabilities.dtypes:
        dtype = torch.bfloat16 if torch.bfloat16 in backend.capabilities.dtypes else torch.float32
        log.info("dtype auto: %s weights are computed in %s on this CPU", stored, str(dtype).removeprefix("torch."))
    return dtype
