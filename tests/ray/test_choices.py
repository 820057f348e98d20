"""What is decided without Ray: shares of machines, options of an app, and where a prompt goes."""

import builtins
import random
from typing import Any

import pytest

from octavo.errors import ConfigError
from octavo.executor.ray_cluster import by_machine, even_share, import_ray
from octavo.ray_serve import build_app
from octavo.ray_serve.app_options import read_options
from octavo.ray_serve.door import merged
from octavo.ray_serve.prefixes import MOST_PIECES, PIECE, PrefixMemory, chain, prompt_text, rank


class TestShares:
    @pytest.mark.parametrize(
        ("cpus", "num_ranks", "share"),
        [
            ([8, 8], 2, 8),
            ([8, 8, 8], 2, 8),
            ([16], 2, 8),
            ([16, 4], 3, 5),
            ([1, 1], 3, 0),
            ([], 1, 0),
            ([0, 2.0], 1, 2),
        ],
    )
    def test_is_the_most_that_all_can_have(self, cpus: list[float], num_ranks: int, share: int) -> None:
        assert even_share(cpus, num_ranks) == share

    def test_ranks_of_a_machine_follow_each_other(self) -> None:
        assert by_machine(["a", "b", "a", "b", "b"]) == [1, 3, 4, 0, 2]
        assert by_machine(["a", "b", "a", "b"]) == [0, 2, 1, 3]
        assert by_machine([]) == []


def test_a_missing_ray_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **keywords: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *args, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r'pip install "octavo\[ray\]"'):
        import_ray()
    with pytest.raises(ConfigError, match=r'pip install "octavo\[ray\]"'):
        build_app({})


class TestOptions:
    def test_text_becomes_values(self) -> None:
        args, server, app = read_options(
            {
                "model": "m",
                "tensor_parallel_size": "2",
                "offline": "true",
                "limit_mm_per_prompt": '{"image": 2}',
                "api_key": "a,b",
                "request_timeout": "7.5",
                "max_replicas": "4",
                "enforce_eager": "true",
            }
        )
        assert (args.model, args.tensor_parallel_size, args.offline) == ("m", 2, True)
        assert args.media_limits == {"image": 2}
        assert (server.api_key, server.request_timeout) == (["a", "b"], 7.5)
        assert app.scaling == {
            "autoscaling_config": {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 16.0}
        }

    def test_values_of_a_file_stay(self) -> None:
        scaling = {"min_replicas": 2, "max_replicas": 9}
        _, _, app = read_options({"autoscaling_config": scaling, "num_cpus": 3})
        assert (app.scaling, app.most_replicas, app.num_cpus) == ({"autoscaling_config": scaling}, 9, 3)
        assert read_options({"num_replicas": 3})[2].scaling == {"num_replicas": 3}

    def test_adapters_need_no_second_option(self) -> None:
        assert read_options({"lora_modules": "a=/tmp/a"})[0].enable_lora

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"modle": "m"}, "did you mean model|Did you mean model"),
            ({"threads": "many"}, "threads='many'"),
            ({"offline": "perhaps"}, "offline='perhaps'"),
            ({"num_replicas": "0"}, "num_replicas=0"),
            ({"num_replicas": 3, "max_replicas": 2}, "max_replicas=2"),
            ({"allow_runtime_lora_updating": "true"}, "lora_modules"),
        ],
    )
    def test_wrong_ones_are_named(self, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            read_options(given)


class TestPrefixes:
    def test_a_chain_stands_for_all_before(self) -> None:
        text = random.Random(7).randbytes(PIECE * 5 + 100)
        numbers = chain(text)
        assert len(numbers) == 5 == len(set(numbers))
        assert chain(text + b"more") == numbers
        changed = chain(text[: 2 * PIECE] + b"!" + text[2 * PIECE + 1 :])
        assert changed[:2] == numbers[:2]
        assert not set(changed[2:]) & set(numbers)
        assert chain(b"") == chain(text[: PIECE - 1]) == []
        assert len(chain(bytes(PIECE * (MOST_PIECES + 2)))) == MOST_PIECES

    def test_text_begins_as_the_prompt_does(self) -> None:
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        one, two = prompt_text({"messages": turns[:1]}), prompt_text({"messages": turns, "temperature": 1})
        assert two.startswith(one.removesuffix(b"]]"))
        assert prompt_text({"messages": turns, "tools": [1]})[:10] != one[:10]
        assert prompt_text({"prompt": [1, 2]}) == b"[null,null,[1,2]]"
        assert prompt_text({"model": "m"}) == b""

    def test_the_longest_beginning_wins_unless_others_are_idle(self) -> None:
        memory = PrefixMemory[str]()
        memory.add([1, 2, 3, 4], "a")
        memory.add([1, 2], "b")
        assert memory.lengths([1, 2, 3, 9]) == {"a": 3, "b": 2}
        assert memory.lengths([9, 2]) == {}
        assert rank({"a": 0, "b": 0, "c": 0}, [1, 2, 3], memory, 8)[:2] == ["a", "b"]
        assert rank({"a": 2, "b": 1, "c": 0}, [1, 2, 3], memory, 1)[0] in ("a", "b")
        assert rank({"a": 1, "b": 0, "c": 0}, [1, 2, 3], memory, 8)[0] == "b"
        assert rank({"a": 1, "b": 1, "c": 0}, [1, 2, 3], memory, 8)[0] == "c"
        memory.forget("a")
        assert memory.lengths([1, 2, 3]) == {"b": 2}

    def test_a_beginning_that_nobody_has_goes_one_way_from_everywhere(self) -> None:
        idle = dict.fromkeys("abcdefgh", 0)
        orders = {number: rank(idle, [number], PrefixMemory(), 8) for number in range(64)}
        assert all(rank(dict(reversed(idle.items())), [n], PrefixMemory(), 8) == order for n, order in orders.items())
        assert {order[0] for order in orders.values()} == set(idle)

    def test_memory_is_bounded(self) -> None:
        memory = PrefixMemory[str](room=10)
        memory.add(range(8), "a")
        memory.add(range(100, 108), "a")
        assert memory.lengths(range(100, 108)) == {"a": 8}
        assert memory.lengths(range(8)) == {}


def test_numbers_of_several_replicas_are_one_exposition() -> None:
    one = b'# HELP octavo:x_total Things\n# TYPE octavo:x_total counter\noctavo:x_total{model_name="m"} 3.0\n'
    both = merged([one, one.replace(b"3.0", b"4.0")]).decode()
    assert both.count("# TYPE octavo:x_total counter") == 1
    assert 'octavo:x_total{model_name="m",replica="0"} 3.0' in both
    assert 'octavo:x_total{model_name="m",replica="1"} 4.0' in both
