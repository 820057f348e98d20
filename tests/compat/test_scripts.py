"""Scripts written for vLLM run unmodified."""

import subprocess
import sys
from pathlib import Path

from tests.adapter_folders import write_adapter
from tests.server.conftest import write_tiny

SCRIPT = """
import sys
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.sampling_params import BeamSearchParams
import vllm.outputs

llm = LLM(model=sys.argv[1], enforce_eager=True, gpu_memory_utilization=0.5, max_model_len=256, tensor_parallel_size=1)
outputs = llm.generate(["The capital of France is"], SamplingParams(temperature=0.0, max_tokens=4))
for output in outputs:
    assert isinstance(output, vllm.outputs.RequestOutput)
    print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
print(llm.generate(TokensPrompt(prompt_token_ids=[1, 2, 3]), SamplingParams(max_tokens=2))[0].finished)
"""


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo.compat.vllm", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_unmodified_script(tmp_path: Path, smollm_file: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = run(script, str(smollm_file))
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert "True" in done.stdout
    assert "enforce_eager has no effect" in done.stderr


LORA_SCRIPT = """
import sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

llm = LLM(model=sys.argv[1], enable_lora=True, max_loras=2, max_lora_rank=8, max_cpu_loras=2, fully_sharded_loras=False)
params = SamplingParams(temperature=0.0, max_tokens=8)
first, second = (LoRARequest(f"adapter-{i}", i, path) for i, path in enumerate(sys.argv[2:], 1))
answers = [llm.generate("Hello", params, lora_request=request)[0].outputs[0].text for request in (None, first, second)]
assert len(set(answers)) == 3, answers
assert second.adapter_id == 2 and second.path == sys.argv[3] and second.name == "adapter-2"
"""


def test_unmodified_script_with_adapters(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "tiny")
    adapters = [str(write_adapter(tmp_path / name, model, i)) for i, name in enumerate("ab")]
    (tmp_path / "script.py").write_text(LORA_SCRIPT)
    done = run(tmp_path / "script.py", str(model), *adapters)
    assert done.returncode == 0, done.stderr
    assert "fully_sharded_loras has no effect" in done.stderr


def test_what_has_no_counterpart_says_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from vllm import NoSuchThing")
    done = run(script)
    assert done.returncode != 0
    assert "NoSuchThing" in done.stderr


def test_script_that_does_not_exist(tmp_path: Path) -> None:
    assert "there is no script" in run(tmp_path / "none.py").stderr
