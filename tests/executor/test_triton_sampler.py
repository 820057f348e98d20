"""The sampler on Triton's kernels: what the reference chooses and tells."""

import math
import os
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from octavo.executor.sampler import sample as sample_with
from octavo.executor.token_scores import TokenScores
from octavo.ops import select_backend
from tests.executor.test_sampler import VOCAB, state

pytest.importorskip("triton")


class Read(TorchDispatchMode):
    """Counts what is read of tensors a number at a time, for each of which a GPU would be waited for."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_triton_s_kernels_choose_the_same(generator: torch.Generator) -> None:
    """All that a request may ask for, in one batch; and log-probabilities, of the model's and of what is left."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process has Triton compile for the GPU: set TRITON_INTERPRET=1")
    kinds: list[dict[str, Any]] = [
        {"temperature": 0, "logprobs": 3},
        {"allowed_token_ids": [5, 7, 2999], "logprobs": 0},
        {"logit_bias": {9: 30.0, 4: -5.0}, "min_tokens": 3, "top_p": 0.9},
        {"repetition_penalty": 1.4, "frequency_penalty": 0.3, "output": [1, 2, 2], "prompt": [4]},
        {"top_k": 7, "min_p": 0.01, "logprobs": 40},
        {"allowed_token_ids": [2], "min_tokens": 1},
        {"temperature": 0, "logits_processors": [lambda out, row: -row], "presence_penalty": 0.5, "output": [3]},
    ]  # fmt: skip
    rows = torch.randn(len(kinds), VOCAB, generator=generator) * 2
    for mode in ("raw_logprobs", "processed_logprobs", "processed_logits"):
        found = []
        for name in ("torch", "triton"):
            backend = select_backend("cpu", name)
            states = [state(seed=i, **kind) for i, kind in enumerate(kinds)]
            with Read() as read:
                found.append(sample_with(rows.clone(), states, backend, None, TokenScores(backend, mode)))
            if name == "triton":
                assert not read.count
        for want, got in zip(*found, strict=True):
            assert (got.token_id, got.error) == (want.token_id, want.error)
            assert len(got.logprobs or []) == len(want.logprobs or [])
            for one, other in zip(got.logprobs or [], want.logprobs or [], strict=True):
                assert one[2] == other[2]
                assert one[0] == other[0] or one[1] == -math.inf  # of equals, any may come first
                assert one[1] == pytest.approx(other[1], abs=1e-5)
