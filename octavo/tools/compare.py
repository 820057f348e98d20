"""Where a model's answers part from transformers': log-probabilities, and the stream after every layer.

    python -m octavo.tools.compare FOLDER [--prompt "1 2 3"]

Both compute in float32, Octavo with its PyTorch reference. The first layer whose difference stands out is where to
look. A folder without weights gets those that the golden case would have.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from octavo import LLM, SamplingParams
from octavo.engine.engine import Engine
from octavo.executor.local import LocalExecutor
from octavo.tools.golden import reference, skeleton
from octavo.tools.recipe import write_model


@dataclass
class Difference:
    """The largest differences between Octavo and the reference."""

    layers: list[float]
    """After the embedding and after each layer, relative to the reference's largest value there."""
    logprobs: float
    """In the log-probability of any prompt token."""


def streams_of_octavo(folder: Path, ids: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """The residual stream `[tokens, hidden_size]` before the first layer and after each, and log-probabilities."""
    llm = LLM(
        str(folder), dtype="float32", ops="torch", skip_tokenizer_init=True, kv_cache_memory="64MiB", device="cpu"
    )
    seen: list[Tensor] = []
    count = len(ids)
    assert isinstance(llm.engine, Engine)
    assert isinstance(llm.engine.executor, LocalExecutor)
    layers = llm.engine.executor.runner.model.layers
    layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:count].clone()))
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: seen.append(output[:count].clone()))
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
    (output,) = llm.generate([{"prompt_token_ids": list(ids)}], params, use_tqdm=False)
    assert output.prompt_logprobs is not None
    entries = zip(output.prompt_logprobs[1:], ids[1:], strict=True)
    return seen[: len(layers) + 1], torch.tensor(
        [entry[token].logprob for entry, token in entries if entry is not None]
    )


@torch.inference_mode()
def compare(folder: Path, ids: Sequence[int], trust_remote_code: bool = False) -> Difference:
    """Both on one prompt of at least two token ids."""
    model = reference(folder, trust_remote_code)
    wanted = model(torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    streams, logprobs = streams_of_octavo(folder, ids)
    # transformers gives the last stream after the last norm, so that it cannot be compared.
    pairs = zip(streams[:-1], wanted.hidden_states[: len(streams) - 1], strict=True)
    layers = [float((own - their[0]).abs().max() / their.abs().max()) for own, their in pairs]
    of_reference = torch.log_softmax(wanted.logits[0, :-1].float(), -1)
    of_reference = of_reference.gather(1, torch.tensor(list(ids[1:])).unsqueeze(1)).squeeze(1)
    return Difference(layers, float((logprobs - of_reference).abs().max()))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m octavo.tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", default="5 17 40 3 99 12 7 55", help='token ids (default: "%(default)s")')
    parser.add_argument("--trust-remote-code", action="store_true", help="run the folder's own Python")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = given.folder
        if not [*folder.glob("*.safetensors"), *folder.glob("*.bin")]:
            folder = write_model(skeleton(folder, "", given.trust_remote_code), Path(made))
        found = compare(folder, [int(i) for i in given.prompt.split()], given.trust_remote_code)
    for index, difference in enumerate(found.layers):
        name = "embedding" if index == 0 else f"layer {index - 1}"
        print(f"{name:12s} {difference:.1e}")
    print(f"largest difference of a log-probability: {found.logprobs:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
