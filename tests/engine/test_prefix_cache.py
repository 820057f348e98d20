"""What shares blocks of the prefix cache: equal tokens computed in the same way, and nothing that a client forges."""

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo import LLM, SamplingParams
from octavo.engine.kv_cache import HashChain
from octavo.features import Feature, encoder_feature
from tests.engine.machine import Machine

SECRET = list(range(12))


def hashes(chain: HashChain, tokens: list[int], block_size: int = 4) -> list[bytes]:
    chain.extend(tokens, block_size)
    return chain.hashes


def chain_of(salt: str, grown: bool = False, encoder: Sequence[int] = ()) -> HashChain:
    """As the engine makes one."""
    fields = {"salt": salt.encode("utf-8", "surrogatepass"), **({"grown": b"1"} if grown else {})}
    return HashChain(fields, [encoder_feature(encoder)] if encoder else [])


def test_a_salt_that_is_a_hash_finds_nothing() -> None:
    """The attack: a hash that happens to be text becomes a salt, and so the parent of a chosen second block."""
    for first in range(3000):
        prompt = [first, 1, 2, 3, *SECRET]
        known = hashes(HashChain(), prompt)
        # As text where it is text, and the other ways to write bytes as text.
        salts = [known[0].decode(errors="ignore"), known[0].decode("latin-1"), known[0].hex()]
        for salt in (*salts, known[0].decode("utf-8", "surrogateescape")):
            assert not set(hashes(chain_of(salt), prompt[4:])) & set(known)


def test_a_salt_that_is_a_hash_gets_no_other_prompts_blocks() -> None:
    """The same over the scheduler, where the stand-in for a model sees whose keys it reads."""
    machine = Machine(num_blocks=64)
    machine.add([1, 2, 3, 4, *SECRET], 1)
    machine.run()
    victim = machine.add([1, 2, 3, 4, *SECRET], 1)
    machine.step()
    for salt in (victim.chain.hashes[0].decode("latin-1"), victim.chain.hashes[0].decode("utf-8", "surrogateescape")):
        attacker = machine.add([*SECRET, 0], 1)
        attacker.chain = chain_of(salt)
        machine.run()
        assert attacker.num_cached == 0


values = st.one_of(
    st.text(max_size=6),
    st.sampled_from(["", "\0", "\0long", "a\0long", "salt", "grown", "\ud800", "a" * 32]),
    st.binary(min_size=16, max_size=32).map(lambda b: b.decode("latin-1")),
)
ids = st.lists(st.integers(0, 3), max_size=6)
origins = st.tuples(values, st.booleans(), ids, st.lists(st.integers(0, 2), min_size=2, max_size=6))


@settings(max_examples=2000, deadline=None)
@given(origins, origins)
def test_different_origins_never_share_a_chain(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    """Blocks `i` and `j` of two sequences have one hash only if everything before their ends is the same."""
    chains = [hashes(chain_of(*origin), tokens, 2) for *origin, tokens in (one, other)]
    for i, j in itertools.product(range(len(chains[0])), range(len(chains[1]))):
        same = one[:3] == other[:3] and one[3][: 2 * (i + 1)] == other[3][: 2 * (j + 1)]
        assert (chains[0][i] == chains[1][j]) == same


def test_every_field_and_feature_is_in_the_root() -> None:
    tokens = [1, 2, 3, 4]
    chains = [
        HashChain(),
        HashChain({"a": b"1"}),
        HashChain({"a": b"2"}),
        HashChain({"b": b"1"}),
        HashChain({"a": b"1", "b": b"1"}),
        HashChain({"a": b"1"}, [encoder_feature([1])]),
        HashChain({"a": b"1"}, [encoder_feature([2])]),
        HashChain({"a": b"1", "features": encoder_feature([1]).digest}),
    ]
    assert len({hashes(chain, tokens)[0] for chain in chains}) == len(chains)
    assert hashes(HashChain({"b": b"1", "a": b"1"}), tokens) == chains[4].hashes


def test_a_feature_in_place_of_tokens_changes_blocks_from_its_own_on() -> None:
    tokens = [7] * 16
    plain = hashes(HashChain(), tokens)
    for offset in (4, 6, 7):
        others = [hashes(HashChain({}, [Feature("x", b"", 5, bytes([d]) * 32, offset)]), tokens) for d in (1, 2)]
        assert others[0][0] == others[1][0] == plain[0]
        for i in (1, 2, 3):
            assert len({plain[i], others[0][i], others[1][i]}) == 3
    assert hashes(HashChain({}, [Feature("x", b"", 2, b"\1" * 32, 4)]), tokens)[1] != others[0][1]


def test_a_salt_never_stands_for_the_long_table(tiny: LLM) -> None:
    """LongRoPE's second table is a field of its own: no salt, however it is written, shares its blocks."""
    engine, params = tiny.engine, SamplingParams(max_tokens=1, temperature=0)
    prompt = [5] * 40
    for salt in ("", "\0long", "long", "\0"):
        output = tiny.generate([{"prompt_token_ids": prompt, "cache_salt": salt}], params, use_tqdm=False)[0]  # type: ignore[list-item]
        again = tiny.generate([{"prompt_token_ids": prompt, "cache_salt": salt}], params, use_tqdm=False)[0]  # type: ignore[list-item]
        assert (output.num_cached_tokens, again.num_cached_tokens) == (0, 32)
        for long in (False, True):
            chain = chain_of(salt, long)
            chain.extend(prompt, engine.cache.block_size)
            assert (engine.cache.pool.find((0, chain.hashes[0])) is not None) is (not long)
    engine.cache.pool.reset()
