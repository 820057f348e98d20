"""`logprobs_mode`: log-probabilities or logits, of the model's own or as tokens are drawn, alone and among others."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError
from octavo.outputs import RequestOutput
from octavo.params import StructuredOutputsParams
from tests.server.conftest import write_tiny
from tests.server.running import server

MODES = ("raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits")
VOCABULARY = 320
PROMPT = [5, 6, 7, 8]
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "repetition_penalty": 1.4, "logit_bias": {9: 3.0}},
    "drawn": {"temperature": 0.7, "top_k": 12, "top_p": 0.9, "seed": 3, "presence_penalty": 0.5},
    "min_p": {"temperature": 1.6, "min_p": 0.2, "seed": 4},
    "allowed": {"temperature": 0.9, "allowed_token_ids": [3, 17, 40, 41, 200], "seed": 5},
}


def params(name: str) -> SamplingParams:
    return SamplingParams(max_tokens=6, ignore_eos=True, logprobs=-1, prompt_logprobs=4, **REQUESTS[name])


def llm(folder: Path, mode: str) -> LLM:
    return LLM(
        str(folder),
        dtype="float32",
        skip_tokenizer_init=True,
        kv_cache_memory="8MiB",
        max_logprobs=-1,
        logprobs_mode=mode,
    )


def row(output: RequestOutput, place: int) -> torch.Tensor:
    """What was told of all tokens at a place of the answer `[vocab]`."""
    told = (output.outputs[0].logprobs or [])[place]
    return torch.tensor([told[token].logprob for token in range(VOCABULARY)], dtype=torch.float64)


@pytest.fixture(scope="module")
def told(tiny_folder: Path) -> dict[str, dict[str, RequestOutput]]:
    """Each mode's outputs of each request, alone; they were the same among others."""
    found = dict[str, dict[str, RequestOutput]]()
    for mode in MODES:
        model = llm(tiny_folder, mode)
        alone = [model.generate([PROMPT], params(name), use_tqdm=False)[0] for name in REQUESTS]
        together = model.generate([PROMPT] * len(REQUESTS), [params(name) for name in REQUESTS], use_tqdm=False)
        for one, other in zip(alone, together, strict=True):
            assert one.outputs[0].logprobs == other.outputs[0].logprobs
            assert one.prompt_logprobs == other.prompt_logprobs
        found[mode] = dict(zip(REQUESTS, alone, strict=True))
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_tokens_are_the_same_in_all_modes(told: dict[str, dict[str, RequestOutput]], name: str) -> None:
    assert len({tuple(told[mode][name].outputs[0].token_ids) for mode in MODES}) == 1


@pytest.mark.parametrize("name", REQUESTS)
def test_log_probabilities_are_of_these_logits(told: dict[str, dict[str, RequestOutput]], name: str) -> None:
    for kind in ("raw", "processed"):
        for place in range(6):
            logits, logprobs = (row(told[f"{kind}_{what}"][name], place) for what in ("logits", "logprobs"))
            torch.testing.assert_close(logits.log_softmax(-1), logprobs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", REQUESTS)
def test_processed_logits_are_what_is_drawn_from(told: dict[str, dict[str, RequestOutput]], name: str) -> None:
    """By the definitions of the sampling values, of the model's own logits."""
    values, answer = REQUESTS[name], told["raw_logits"][name].outputs[0].token_ids
    for place in range(6):
        logits, seen = row(told["raw_logits"][name], place), answer[:place]
        if (allowed := values.get("allowed_token_ids")) is not None:
            logits[[i for i in range(VOCABULARY) if i not in allowed]] = -math.inf
        for token, bias in values.get("logit_bias", {}).items():
            logits[token] += bias
        if (penalty := values.get("repetition_penalty")) is not None:
            known = sorted({*PROMPT, *seen})
            logits[known] = torch.where(logits[known] > 0, logits[known] / penalty, logits[known] * penalty)
        logits[sorted(set(seen))] -= values.get("presence_penalty", 0.0)
        logits /= values["temperature"] or 1.0
        if floor := values.get("min_p"):
            logits[logits.softmax(-1) < floor * logits.softmax(-1).max()] = -math.inf
        if count := values.get("top_k"):
            logits[logits < logits.topk(count).values[-1]] = -math.inf
        if share := values.get("top_p"):
            order = logits.argsort(descending=True)
            before = logits.softmax(-1)[order].cumsum(0) - logits.softmax(-1)[order]
            logits[order[before >= share]] = -math.inf
        processed = row(told["processed_logits"][name], place)
        torch.testing.assert_close(processed, logits, atol=1e-4, rtol=0)
        assert math.isfinite(processed[answer[place]])


def test_prompts_are_told_as_the_model_has_them(told: dict[str, dict[str, RequestOutput]]) -> None:
    """No sampling value changes a prompt: raw and processed are one, logits where the mode says so."""
    for name in REQUESTS:
        of = {mode: told[mode][name].prompt_logprobs for mode in MODES}
        assert of["raw_logprobs"] == of["processed_logprobs"]
        assert of["raw_logits"] == of["processed_logits"]
        for logits, logprobs in zip((of["raw_logits"] or [])[1:], (of["raw_logprobs"] or [])[1:], strict=True):
            assert logits is not None
            assert logprobs is not None
            assert {t: e.rank for t, e in logits.items()} == {t: e.rank for t, e in logprobs.items()}
            shifts = [logits[token].logprob - entry.logprob for token, entry in logprobs.items()]
            assert max(shifts) - min(shifts) < 1e-4
            assert max(shifts) > 0.5  # the logarithm of a sum over 320 tokens


def test_what_a_grammar_leaves_makes_up_the_whole(smollm_file: Path) -> None:
    model = LLM(
        str(smollm_file), dtype="float32", kv_cache_memory="64MiB", max_model_len=256, max_logprobs=-1,
        logprobs_mode="processed_logprobs",
    )  # fmt: skip
    asked = SamplingParams(
        temperature=1.5, seed=1, max_tokens=4, logprobs=-1, structured_outputs=StructuredOutputsParams(regex="[0-9]{8}")
    )
    (output,) = model.generate(["a number: "], asked, use_tqdm=False)
    for entries in output.outputs[0].logprobs or []:
        left = [entry for entry in entries.values() if entry.logprob > -math.inf]
        assert all((entry.decoded_token or "").strip().isdigit() for entry in left)
        assert sum(math.exp(entry.logprob) for entry in left) == pytest.approx(1, abs=1e-4)


def test_an_unknown_mode_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"logprobs_mode='processed'.*processed_logprobs"):
        llm(tiny_folder, "processed")


def test_a_server_tells_what_its_flag_says(tmp_path: Path) -> None:
    with server(str(write_tiny(tmp_path / "tiny")), "--logprobs-mode", "processed_logits") as running:
        body = {"prompt": "abc", "max_tokens": 3, "temperature": 0.5, "seed": 2, "top_k": 2, "logprobs": 4}
        (choice,) = running.post("/v1/completions", body).json()["choices"]
    for own, told in zip(choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"], strict=True):
        values = sorted(told.values(), reverse=True)
        assert own in values[:2]
        assert math.fsum(map(math.exp, values[:2])) != pytest.approx(1, abs=0.01)
        assert values[2:] == [-9999.0] * 2
