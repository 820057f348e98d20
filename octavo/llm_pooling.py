"""What an LLM makes of prompts beside text: embeddings, scores, classes, rewards."""

from collections.abc import Sequence
from typing import Any, cast

from octavo.batch_calls import Adapters, ShowsProgress, as_tensor, prompt_list, with_value
from octavo.client.scoring import ScoreOptions, pair_up, plan_scores
from octavo.errors import InvalidRequestError
from octavo.llm_batches import LLMBatches
from octavo.lora import LoRARequest
from octavo.outputs import (
    ClassificationOutput,
    ClassificationRequestOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    PoolingOutput,
    PoolingRequestOutput,
    ScoringOutput,
    ScoringRequestOutput,
)
from octavo.params import PoolingParams
from octavo.prompts import Prompt
from octavo.text.template_files import given_template


class LLMPooling(LLMBatches):
    """The part of an LLM that pools."""

    chat_template: str | None

    def encode(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: ShowsProgress = True,
        lora_request: Adapters = None,
        pooling_task: str | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """Pooled hidden states, scores or rewards of prompts, as tensors; `pooling_task` as PoolingParams.task."""
        params = with_value(pooling_params, task=pooling_task)
        return [as_tensor(o) for o in self._pool(prompts, params, use_tqdm, lora_request, tokenization_kwargs)]

    def _pool(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None,
        use_tqdm: ShowsProgress,
        lora_request: Adapters,
        tokenization: dict[str, Any] | None = None,
    ) -> list[PoolingRequestOutput[PoolingOutput]]:
        """What `encode` gives, as arrays."""
        call = self._call(prompts, pooling_params or PoolingParams(), lora_request, None, tokenization)
        return cast(list[PoolingRequestOutput[PoolingOutput]], self._run(call, use_tqdm, "Pooling"))

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: ShowsProgress = True,
        lora_request: Adapters = None,
        prompt_name: str | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[EmbeddingRequestOutput]:
        """Embeddings of prompts. Start the engine with task="embedding".

        `prompt_name` says which of the model's own prompts stands before each text, as in PoolingParams.
        """
        self._need_task("embedding")
        pooling_params = with_value(pooling_params, prompt_name=prompt_name)
        return [
            EmbeddingRequestOutput(
                o.request_id,
                EmbeddingOutput(o.outputs.data.tolist()),
                o.prompt_token_ids,
                o.finished,
                o.num_cached_tokens,
            )
            for o in self._pool(prompts, pooling_params, use_tqdm, lora_request, tokenization_kwargs)
        ]

    def classify(
        self,
        prompts: Prompt | Sequence[Prompt],
        pooling_params: PoolingParams | Sequence[PoolingParams] | None = None,
        *,
        use_tqdm: ShowsProgress = True,
        lora_request: Adapters = None,
        tokenization_kwargs: dict[str, Any] | None = None,
    ) -> list[ClassificationRequestOutput]:
        """Probabilities of each class, for each prompt, or for each of its tokens. Needs a model that classifies."""
        self._need_task("classify", "token_classify")
        return [
            ClassificationRequestOutput(
                o.request_id,
                ClassificationOutput(o.outputs.data.tolist()),
                o.prompt_token_ids,
                o.finished,
                o.num_cached_tokens,
            )
            for o in self._pool(prompts, pooling_params, use_tqdm, lora_request, tokenization_kwargs)
        ]

    def score(
        self,
        text_1: Prompt | Sequence[Prompt],
        text_2: Prompt | Sequence[Prompt],
        *,
        use_tqdm: ShowsProgress = True,
        pooling_params: PoolingParams | None = None,
        lora_request: LoRARequest | None = None,
        tokenization_kwargs: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> list[ScoringRequestOutput]:
        """How well texts go together: one with each of many, or each of many with its partner.

        An embedding engine gives the cosine of their embeddings or, where each token has one, for each token of the
        first text the highest with one of the second's, added up (ColBERT's late interaction). A classifier of one or
        two classes reads both texts as one input and gives the probability of its last class; `chat_template` says how
        they are written then, by the roles query and document, instead of what the model's files say.
        """
        pairs = pair_up(prompt_list(text_1), prompt_list(text_2))
        if self.engine.info.task != "classify":
            self._need_task("embedding")
        template = self.chat_template if chat_template is None else given_template(chat_template)
        options = ScoreOptions(pooling_params or PoolingParams(), template=template)
        plan = plan_scores(pairs, self.engine.ready, self.engine.checker, options)
        outputs = self._pool(plan.prompts, plan.params, use_tqdm, lora_request, tokenization_kwargs)
        scores = plan.scores([output.outputs.data for output in outputs])
        return [
            ScoringRequestOutput(
                "-".join(outputs[place].request_id for place in places),
                ScoringOutput(score),
                [token for place in places for token in outputs[place].prompt_token_ids],
                num_cached_tokens=sum(outputs[place].num_cached_tokens for place in places),
            )
            for score, places in zip(scores, plan.places, strict=True)
        ]

    def _need_task(self, *tasks: str) -> None:
        if self.engine.info.task not in tasks:
            raise InvalidRequestError(
                f'this needs LLM(..., task="{tasks[0]}") and a model for it; this engine serves '
                f"{self.engine.info.task!r}."
            )
