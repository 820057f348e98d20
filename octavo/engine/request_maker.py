"""New requests: their sequences, and what the executor is told of these."""

import random
from typing import Any

from octavo.config import EngineArgs
from octavo.engine.engine_request import Completion, GenerationRequest, PoolingRequest, Request
from octavo.engine.kv_cache import HashChain, KVCacheManager, prompt_chain
from octavo.engine.sequence import Sequence
from octavo.errors import ConfigError, InvalidRequestError
from octavo.executor.step import SequenceStart
from octavo.loading.model_info import ModelInfo
from octavo.params import PoolingParams, SamplingParams
from octavo.processor_classes import check_params, load_class
from octavo.text.checked_prompt import CheckedPrompt
from octavo.text.inputs import InputChecker


class RequestMaker:
    """Makes an engine's requests.

    Args:
        args: the engine's options.
        info: what is known of the model, with the engine's own max_model_len.
        cache: whose blocks they will have.
        checker: of what they ask for.
    """

    def __init__(self, args: EngineArgs, info: ModelInfo, cache: KVCacheManager, checker: InputChecker) -> None:
        self._args, self._info, self._cache, self._checker = args, info, cache, checker
        self.max_model_len = info.max_model_len
        """Most tokens of a sequence."""
        self._last_seq_id = 0
        self._random = random.Random(args.seed)
        usual = info.pooling.task
        if usual is not None and usual not in info.pooling_tasks:
            raise ConfigError(f"PoolerConfig.task={usual!r}: this engine pools for {', '.join(info.pooling_tasks)}.")
        self._processors = [load_class(one) for one in args.logits_processors or ()]

    def make(
        self,
        request_id: str,
        checked: CheckedPrompt,
        params: SamplingParams | PoolingParams,
        priority: int,
        starts: list[SequenceStart],
    ) -> Request:
        """All that may fail of adding a request; nothing else knows of it yet. What starts it goes to `starts`.

        Raises InvalidRequestError for one that cannot be served, and whatever else may happen.
        """
        self._checker.length(checked.token_ids, params)  # who checked it may not know this engine's memory
        if priority and self._args.scheduling_policy != "priority":
            raise InvalidRequestError(
                f'priority={priority} has no effect here: start the engine with scheduling_policy="priority".'
            )
        if isinstance(params, SamplingParams):
            return self._generation(request_id, checked, params, priority, starts)
        if params.task is None and self._info.pooling.task is not None:
            params = params.clone()
            params.task = self._info.pooling.task
        self._check_pooling(params)
        of_last = self._info.pooling.pooling_type == "LAST" and params.task in (None, "embed", "classify")
        reads_cache = of_last  # others need the hidden states of every token
        sequence = self.sequence(checked, priority, reads_cache, self._chain(checked))
        starts.append(self._sequence_start(sequence, checked, pooling=params))
        return PoolingRequest(request_id, params, sequence, adapter_name=_adapter_name(checked))

    def _check_pooling(self, params: PoolingParams) -> None:
        info = self._info
        if params.task is not None and params.task not in info.pooling_tasks:
            raise InvalidRequestError(
                f"task={params.task!r}: this engine pools for {', '.join(info.pooling_tasks)}. Start it with "
                "another task, or give a folder that has the model's heads for it."
            )
        if params.dimensions is None or info.task != "embedding":
            return
        if info.dimensions is None:
            raise InvalidRequestError(
                f"dimensions={params.dimensions}: this model was not trained for embeddings that are cut "
                '(Matryoshka), and would give poor ones. If you know better: hf_overrides={"is_matryoshka": True}.'
            )
        if info.dimensions and params.dimensions not in info.dimensions:
            raise InvalidRequestError(
                f"dimensions={params.dimensions}: this model was trained for {', '.join(map(str, info.dimensions))}."
            )

    def sequence(self, checked: CheckedPrompt, priority: int, reads_cache: bool, chain: HashChain) -> Sequence:
        """A new sequence of a prompt, whose hashes are `chain`."""
        self._last_seq_id += 1
        threshold = self._info.long_rope_threshold
        if threshold is not None and len(checked.token_ids) > threshold:
            threshold = None  # it is computed for that length from its start
        return Sequence(
            self._last_seq_id,
            list(checked.token_ids),
            priority,
            reads_cache,
            chain.copy(),
            None if checked.adapter is None else checked.adapter.digest,
            recompute_beyond=threshold,
            is_whole=self._info.reads_whole,
        )

    def _chain(self, checked: CheckedPrompt) -> HashChain:
        """The prompt's hashes for the prefix cache, computed once for all of a request's sequences."""
        chain = prompt_chain(checked, self._info.long_rope_threshold)
        if chain.features and self._cache.encoder_group is not None:
            self._cache.check_cross_rows(chain, len(checked.token_ids))
        if self._cache.prefix_caching:
            chain.extend(checked.token_ids, self._cache.block_size)
        return chain

    @staticmethod
    def _sequence_start(sequence: Sequence, checked: CheckedPrompt, **values: Any) -> SequenceStart:
        return SequenceStart(
            sequence.seq_id,
            checked.token_ids,
            features=checked.features,
            positions=checked.positions,
            both_ways=checked.both_ways,
            adapter=checked.adapter,
            token_types=checked.token_types,
            unpooled=checked.unpooled,
            **values,
        )

    def _generation(
        self,
        request_id: str,
        checked: CheckedPrompt,
        params: SamplingParams,
        priority: int,
        starts: list[SequenceStart],
    ) -> GenerationRequest:
        self._checker.sampling(params)
        check_params(self._processors, params)
        params = params.clone()
        params.logits_processors = None
        eos = frozenset() if params.ignore_eos else self._info.eos_token_ids
        stop_ids = sorted(eos | set(params.stop_token_ids or []))
        room = self.max_model_len - len(checked.token_ids)
        reads_cache = params.prompt_logprobs is None and not params.skip_reading_prefix_cache
        seed = self._random.getrandbits(64) if params.seed is None else params.seed % (1 << 64)
        request = GenerationRequest(request_id, params, [], adapter_name=_adapter_name(checked))
        if params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]
        chain = self._chain(checked)
        for index in range(params.num_sequences):
            sequence = self.sequence(checked, priority, reads_cache, chain)
            starts.append(
                self._sequence_start(
                    sequence,
                    checked,
                    index=index,
                    count=params.num_sequences,
                    sampling=params,
                    seed=seed,
                    stop_ids=stop_ids,
                )
            )
            longest = min(params.max_tokens or room, room)
            request.completions.append(Completion(index, sequence, params, longest))
        return request


def _adapter_name(checked: CheckedPrompt) -> str | None:
    return None if checked.adapter is None else checked.adapter.name
