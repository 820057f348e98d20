"""What needs a GPU: golden cases in all number types, the same bits alone and in batches, and steps from graphs."""

import random
from pathlib import Path

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.ops import Backend, select_backend
from tests.golden import CASES, case_named, has_media, read_case, write_model
from tests.ops.rank_processes import run_ranks
from tests.test_golden import agrees

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU here"),
]
TEXT = [path for path in CASES if not has_media(read_case(path))]
DTYPES = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def gpu() -> Backend:
    return select_backend("cuda", "triton")


@pytest.mark.parametrize("path", TEXT, ids=lambda path: path.stem)
def test_a_golden_case(path: Path, tmp_path: Path) -> None:
    agrees(read_case(path), tmp_path, device="cuda", ops="triton")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 96), (4096, 4096), (5000, 37), (576, 151_936)], ids=str)
def test_rows_of_products_do_not_see_each_other(gpu: Backend, shape: tuple[int, int], dtype: torch.dtype) -> None:
    linear = gpu.linear(torch.randn(shape[1], shape[0], device="cuda").to(dtype))
    x = torch.randn(300, shape[0], device="cuda").to(dtype)
    together = linear(x)
    for rows in [*range(1, 18), 63, 64, 65, 129]:
        assert torch.equal(linear(x[:rows]), together[:rows]), rows
        assert torch.equal(linear(x[300 - rows :]), together[300 - rows :]), rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_are_the_same_bits_in_random_batches(dtype: str, tmp_path: Path) -> None:
    llm = LLM(
        str(write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)),
        device="cuda", ops="triton", dtype=dtype, skip_tokenizer_init=True, kv_cache_memory="256MiB",
        enable_prefix_caching=False, max_num_batched_tokens=48,
    )  # fmt: skip
    draw = random.Random(5)
    prompts = [[draw.randrange(300) for _ in range(draw.randint(1, 90))] for _ in range(24)]
    params = SamplingParams(temperature=0, max_tokens=12, logprobs=1, ignore_eos=True)

    def answers(some: list[list[int]]) -> list[object]:
        outputs = llm.generate([{"prompt_token_ids": p} for p in some], params, use_tqdm=False)
        return [(o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for o in outputs]

    alone = [answers([prompt])[0] for prompt in prompts]
    for _ in range(200):
        chosen = draw.sample(range(len(prompts)), draw.randint(2, len(prompts)))
        assert answers([prompts[i] for i in chosen]) == [alone[i] for i in chosen]


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_from_graphs_are_steps(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo.ops.triton import TritonBackend

    folder = write_model(case_named("LlamaForCausalLM--gqa-tied"), tmp_path)
    params = SamplingParams(temperature=0, max_tokens=20, logprobs=1, ignore_eos=True)

    def answers() -> list[object]:
        llm = LLM(
            str(folder), device="cuda", ops="triton", dtype=dtype, skip_tokenizer_init=True, kv_cache_memory="64MiB"
        )
        outputs = llm.generate([{"prompt_token_ids": [1 + i, 7, 9]} for i in range(5)], params, use_tqdm=False)
        return [(o.outputs[0].token_ids, o.outputs[0].cumulative_logprob) for o in outputs]

    recorded = answers()
    monkeypatch.setattr(TritonBackend, "record_decode", lambda *arguments, **options: None)
    assert answers() == recorded


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU, and NCCL wants one for each rank")
@pytest.mark.parametrize("place", [(2, 2), (2, 1)], ids=["two ranks", "two stages"])
def test_ranks_record_what_they_meet_in(place: tuple[int, int], tmp_path: Path) -> None:
    from tests.ops.test_graph_steps import EXPECTED, sums

    for rank, (results, sizes, _) in enumerate(run_ranks("cuda", place, tmp_path, sums, -1, "")):
        if rank >= place[0] - place[1]:
            assert results == EXPECTED[2, place[1]]
        assert sizes == [4, 2, 8, 1]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU, and NCCL wants one for each rank")
@pytest.mark.parametrize("layout", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_a_golden_case_on_two_gpus(layout: str, tmp_path: Path) -> None:
    agrees(case_named("LlamaForCausalLM--gqa-tied"), tmp_path, device="cuda", ops="triton", **{layout: 2})
