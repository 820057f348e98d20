"""`make clients`: lm_eval --model vllm, unmodified, on two tasks of three questions with a tiny model.

Run from the repository's folder by a Python that has Octavo and lm_eval.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.server.conftest import write_tiny

TASKS = ("octavo_tiny_choice", "octavo_tiny_text")


def main() -> int:
    """Raises AssertionError where a task does not run, or scores are not those of the engine itself."""
    with tempfile.TemporaryDirectory() as made:
        model, results = write_tiny(Path(made) / "tiny"), Path(made) / "results"
        command = [sys.executable, "-m", "octavo.compat.vllm", "-m", "lm_eval", "run", "--model", "vllm"]
        command += ["--model_args", f"pretrained={model},max_model_len=512,kv_cache_memory=64MiB"]
        command += ["--tasks", ",".join(TASKS), "--include_path", "tests/compat/clients", "--output_path", str(results)]
        command += ["--log_samples"]
        subprocess.run(command, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"})
        said = json.loads(next(results.rglob("results_*.json")).read_text())["results"]
        samples = [json.loads(line) for line in next(results.rglob("samples_octavo_tiny_choice*")).open()]
        _check(model, samples)
    assert said.keys() == set(TASKS), said
    print(f"lm_eval --model vllm: {said}")
    return 0


def _check(model: Path, samples: list[dict[str, object]]) -> None:
    """Each choice's log-likelihood is what the engine says of its tokens."""
    from octavo import LLM, SamplingParams

    llm = LLM(str(model), max_model_len=512, kv_cache_memory="64MiB")
    encode = llm.get_tokenizer().encode
    for sample in samples:
        doc: dict[str, object] = sample["doc"]  # type: ignore[assignment]
        for choice, ((likelihood, _),) in zip(doc["choices"], sample["resps"], strict=True):  # type: ignore[call-overload]
            question = str(doc["question"])
            ids, start = encode(question + choice), len(encode(question))
            params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0)
            (output,) = llm.generate({"prompt_token_ids": ids}, params, use_tqdm=False)
            places = (output.prompt_logprobs or [])[start:]
            own = sum(place[token].logprob for place, token in zip(places, ids[start:], strict=True) if place)
            assert abs(own - float(likelihood)) < 1e-3, (question, choice, own, likelihood)


if __name__ == "__main__":
    sys.exit(main())
