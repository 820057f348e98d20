"""Beam search on top of the engine: each step asks for the likeliest next tokens of every beam."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from tqdm import tqdm

from octavo.client.engine_client import KnownEngine
from octavo.lora import LoRARequest
from octavo.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from octavo.params import BeamSearchParams, SamplingParams
from octavo.prompts import Prompt
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.tokenizer import Tokenizer


def beam_search(
    engine: KnownEngine,
    generate: Callable[[list[CheckedPrompt], SamplingParams, list[int]], list[RequestOutput]],
    prompts: Sequence[tuple[Prompt, LoRARequest | None, int]],
    params: BeamSearchParams,
    use_tqdm: bool,
) -> list[BeamSearchOutput]:
    """The `beam_width` best continuations of each prompt. All prompts advance together, a token a step.

    `prompts`: each with its adapter and its priority.
    """
    count = 2 * params.beam_width if params.allowed_token_ids is None else -1
    step_params = SamplingParams(max_tokens=1, temperature=params.temperature, logprobs=count, detokenize=False)
    checked = [(engine.checker.prompt(p, step_params, adapter), priority) for p, adapter, priority in prompts]
    searches = [_Search(prompt, priority, params, engine.info.eos_token_ids) for prompt, priority in checked]
    limit = engine.max_model_len
    for _ in tqdm(range(params.max_tokens), desc="Beam search", disable=not use_tqdm):
        beams = [(s.prompt(b), s.priority) for s in searches for b in s.live if len(b.tokens) < limit]
        if not beams:
            break
        answers = iter(generate([prompt for prompt, _ in beams], step_params, [priority for _, priority in beams]))
        for search in searches:
            search.advance(answers, limit)
    return [BeamSearchOutput(s.best(engine.tokenizer)) for s in searches]


class _Search:
    """The beams of one prompt."""

    def __init__(self, checked: CheckedPrompt, priority: int, params: BeamSearchParams, eos: frozenset[int]) -> None:
        self.checked, self.priority = checked, priority
        self._allowed = None if params.allowed_token_ids is None else frozenset(params.allowed_token_ids)
        self.params, self.eos = params, eos
        self.live = [BeamSearchSequence(tokens=list(checked.token_ids))]
        self.done: list[BeamSearchSequence] = []

    def prompt(self, beam: BeamSearchSequence) -> CheckedPrompt:
        """What is asked for the beam's next token: the prompt, with all that is not tokens, and the beam behind it."""
        checked, tokens = self.checked, list(beam.tokens)
        positions = checked.positions and checked.positions.extended(len(tokens) - len(checked.token_ids))
        return dataclasses.replace(checked, text=None, token_ids=tokens, positions=positions)

    def advance(self, answers: Iterator[RequestOutput], limit: int) -> None:
        """Extend every live beam by its likeliest tokens, and keep the best."""
        grown = []
        for beam in self.live:
            if len(beam.tokens) >= limit:
                self.done.append(beam)
                continue
            logprobs = (next(answers).outputs[0].logprobs or [{}])[0]
            for token, entry in logprobs.items():
                if self._allowed is not None and token not in self._allowed:
                    continue
                longer = BeamSearchSequence(
                    tokens=[*beam.tokens, token],
                    logprobs=[*beam.logprobs, logprobs],
                    cum_logprob=beam.cum_logprob + entry.logprob,
                )
                if token in self.eos and not self.params.ignore_eos:
                    longer.finish_reason = "stop"
                    self.done.append(longer)
                else:
                    grown.append(longer)
        self.live = sorted(grown, key=self.score, reverse=True)[: self.params.beam_width]

    def score(self, beam: BeamSearchSequence) -> float:
        """Total log-probability over length ** length_penalty, the length being that of the answer with its end."""
        return float(beam.cum_logprob / max(1, len(beam.logprobs)) ** self.params.length_penalty)

    def best(self, tokenizer: Tokenizer | None) -> list[BeamSearchSequence]:
        beams = sorted(self.done + self.live, key=self.score, reverse=True)[: self.params.beam_width]
        for beam in beams:
            beam.finish_reason = beam.finish_reason or "length"
            if tokenizer is not None:
                tokens = beam.tokens
                if beam.finish_reason == "stop" and not self.params.include_stop_str_in_output:
                    tokens = tokens[:-1]
                beam.text = tokenizer.decode(tokens, self.params.skip_special_tokens)
        return beams
