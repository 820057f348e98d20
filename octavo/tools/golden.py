"""Make a golden case: what transformers answers on a tiny model.

    python -m octavo.tools.golden FOLDER [--variant NAME] [--out tests/golden/cases]

FOLDER holds a config.json in the published format, with sizes so small that the model is computed in a moment (a few
layers, hidden_size 64, vocab_size 320), and whatever other text files belong to it; no weights. Their names and shapes
are transformers' own, and their values follow from their names. The case is written as `ROW--VARIANT.json`.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from octavo.tools.recipe import Case, spec, write_model

TEXT_FILES = (".json", ".txt", ".jinja", ".py")
PROMPTS = (1, 5, 17, 40)
"""Lengths of the prompts."""
TOP = 5


def model_class(row: str) -> Any:
    """transformers' class of that name; of one that is the folder's own, the class that finds it."""
    import transformers

    return getattr(transformers, row, transformers.AutoModelForCausalLM)


def skeleton(folder: Path, variant: str, trust_remote_code: bool = False) -> Case:
    """The case without answers: the folder's config and files, and the tensors that transformers has for them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = json.loads((folder / "config.json").read_text())
    loaded = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    found = model_class(config["architectures"][0])
    with torch.device("meta"):
        if found is AutoModelForCausalLM or trust_remote_code:
            model = AutoModelForCausalLM.from_config(loaded, trust_remote_code=trust_remote_code)
        else:
            model = found(loaded)
    tied = set(getattr(model, "all_tied_weights_keys", None) or getattr(model, "_tied_weights_keys", None) or ())
    files = {
        str(f.relative_to(folder)): f.read_text()
        for f in sorted(folder.rglob("*"))
        if f.suffix in TEXT_FILES and f.name != "config.json"
    }
    return {
        "row": config["architectures"][0],
        "variant": variant,
        "notes": "",
        "config": config,
        "files": files,
        "tensors": {
            name: spec(name, tensor.shape)
            for name, tensor in published(model).items()
            if not (name in tied and loaded.tie_word_embeddings)
        },
        "cases": [],
    }


def published(model: Any) -> dict[str, torch.Tensor]:
    """The model's tensors as its checkpoints have them: its own modules may be others, such as experts in a stack."""
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # transformers 4, where they are the same
        return dict(model.state_dict())
    return dict(revert_weight_conversion(model, model.state_dict()))


def reference(folder: Path, trust_remote_code: bool = False) -> Any:
    """transformers' model of a folder, in float32, with attention as it is written down."""
    from transformers import AutoModelForCausalLM

    row = json.loads((folder / "config.json").read_text())["architectures"][0]
    found = AutoModelForCausalLM if trust_remote_code else model_class(row)
    return found.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", trust_remote_code=trust_remote_code
    ).eval()


@torch.inference_mode()
def answer(model: Any, prompt: list[int], tokens: int) -> dict[str, Any]:
    """What the reference says of a prompt: its log-probabilities, and the greedy continuation, without any cache."""

    def logprobs(ids: list[int]) -> torch.Tensor:
        return torch.log_softmax(model(torch.tensor([ids]), use_cache=False).logits[0].double(), -1)

    ids, tops, margins = list(prompt), [], []
    for _ in range(tokens):
        values, chosen = logprobs(ids)[-1].topk(TOP)
        tops.append([[t, round(v, 5)] for t, v in zip(chosen.tolist(), values.tolist(), strict=True)])
        margins.append(float(values[0] - values[1]))
        ids.append(int(chosen[0]))
    of_prompt = logprobs(prompt)[:-1].gather(1, torch.tensor(prompt[1:], dtype=torch.long).unsqueeze(1)).squeeze(1)
    return {
        "prompt_token_ids": prompt,
        "prompt_logprobs": [round(v, 5) for v in of_prompt.tolist()],
        "output_token_ids": ids[len(prompt) :],
        "top_logprobs": tops,
        "min_margin": round(min(margins), 4),
    }


def make(folder: Path, variant: str, tokens: int = 16, trust_remote_code: bool = False) -> Case:
    """The whole case. `min_margin` says how far the likeliest token is ahead: below 0.001 another prompt is better."""
    import transformers

    case = skeleton(folder, variant, trust_remote_code)
    with tempfile.TemporaryDirectory() as written:
        model = reference(write_model(case, Path(written)), trust_remote_code)
        case["reference"] = f"transformers {transformers.__version__} {type(model).__name__}, eager, float32, no cache"
        vocab, generator = model.get_input_embeddings().num_embeddings, torch.Generator().manual_seed(0)
        for length in PROMPTS:
            prompt = torch.randint(3, vocab, (length,), generator=generator).tolist()
            case["cases"].append(answer(model, prompt, tokens))
    return case


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m octavo.tools.golden", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variant", default="tiny", help="what the case is about (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("tests/golden/cases"), help="default: %(default)s")
    parser.add_argument("--tokens", type=int, default=16, help="length of the answers (default: %(default)s)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the folder's own Python")
    given = parser.parse_args(arguments)
    if not (given.folder / "config.json").is_file():
        print(f"{given.folder} has no config.json; write one in the published format.", file=sys.stderr)
        return 1
    case = make(given.folder, given.variant, given.tokens, given.trust_remote_code)
    path = given.out / f"{case['row']}--{case['variant']}.json"
    path.write_text(json.dumps(case, indent=1) + "\n")
    margin = min(c["min_margin"] for c in case["cases"])
    print(f"{path}: {len(case['tensors'])} tensors, {len(case['cases'])} prompts, smallest margin {margin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
