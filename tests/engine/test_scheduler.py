"""The scheduler under thousands of random schedules: nobody is lost, nothing is shared wrongly, everybody finishes."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo.engine.sequence import Status
from octavo.features import Feature
from octavo.token_windows import Chunk
from tests.engine.machine import Machine, next_token, picture, random_machine
from tests.engine.outside import Outside
from tests.instructions import instructions


def expected(prompt: list[int], answer: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(answer):
        tokens.append(next_token(tokens))
    return tokens


def random_pictures(rng: random.Random, length: int) -> tuple[list[Feature], list[tuple[int, int]]]:
    """Pictures in a prompt, and spans that see both ways."""
    cuts = sorted(rng.sample(range(length + 1), min(length + 1, 2 * rng.randint(0, 3))))
    places = list(zip(cuts[::2], cuts[1::2], strict=False))
    pictures = [picture(start, end - start, rng.randrange(3) * 64 + end - start) for start, end in places]
    spans = [place for place in places if rng.random() < 0.3]
    return [] if rng.random() < 0.2 else pictures, spans


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32))
def test_random_schedules(seed: int) -> None:
    run_random_schedule(*random_machine(seed))


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 4))
@example(400898, 2)  # who has the next turn gives way to who would have the one after it, and no step is on its way
def test_random_schedules_with_several_steps_on_their_way(seed: int, max_steps: int) -> None:
    run_random_schedule(*random_machine(seed, max_steps))


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.booleans())
def test_random_schedules_with_drafts(seed: int, max_steps: int, recurrent: bool) -> None:
    """Wrong guesses leave nothing behind: not in blocks, not in what later prompts find, not in fixed-size states."""
    machine, rng = random_machine(seed, max_steps)
    machine.guesses, machine.recurrent, machine.scheduler.recurrent = rng, recurrent, recurrent
    if recurrent:
        machine.cache.prefix_caching = False  # as for all models with such states
    run_random_schedule(machine, rng)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_random_schedules_with_blocks_outside(seed: int, max_steps: int) -> None:
    """What leaves the cache and comes back is what it was, whoever else computes, fails or ends meanwhile."""
    outside = Outside(random.Random(seed))
    machine, rng = random_machine(seed, max_steps, outside)
    machine.guesses = random.Random(seed) if seed % 3 == 0 else None
    run_random_schedule(machine, rng)
    again, rng = random_machine(seed, max_steps, outside.restarted())
    run_random_schedule(again, rng)


def restarted(num_blocks: int, prompt: list[int]) -> Machine:
    """A machine that finds outside what another one has computed of a prompt."""
    outside = Outside(random.Random(0), is_sound=True)
    first = Machine(num_blocks=num_blocks, max_tokens=64, outside=outside)
    first.add(prompt, 3)
    first.run()
    return Machine(num_blocks=num_blocks, max_tokens=64, outside=outside.restarted())


def test_prompts_of_before_a_restart_are_found() -> None:
    machine = restarted(32, list(range(30)))
    sequence = machine.add(list(range(30)), 3)
    machine.run()
    assert sequence.num_cached == 28
    assert machine.offload.hits == 28 == machine.offload.queries
    assert machine.outside.num_loaded == 7
    assert sequence.tokens == expected(list(range(30)), 3)


def test_blocks_that_several_wait_for_are_read_once() -> None:
    machine = restarted(64, list(range(30)))
    for _ in range(4):
        machine.add(list(range(30)), 3)
    machine.run()
    assert machine.outside.num_loaded == 7
    assert all(sequence.num_cached == 28 for sequence in machine.finished)


def test_others_go_on_while_blocks_are_read() -> None:
    machine = restarted(64, list(range(30)))
    late, other = machine.add(list(range(30)), 3), machine.add([4] * 9, 3)
    for _ in range(20):
        if machine.outside.busy and other.status is Status.RUNNING:
            break
        machine.step()
    assert late.status is Status.LOADING
    machine.run()
    assert late.num_cached == 28


def test_no_more_is_read_than_there_is_room_for() -> None:
    machine = restarted(8, list(range(30)))
    running = machine.add([1] * 11, 6)
    for _ in range(3):
        machine.step()
    late = machine.add(list(range(30)), 3)
    machine.run()
    assert running.num_preemptions == 0
    assert late.tokens == expected(list(range(30)), 3)


def test_blocks_are_saved_before_others_are_written_to_them() -> None:
    outside = Outside(random.Random(5), is_sound=True)
    machine = Machine(num_blocks=8, max_tokens=64, outside=outside)
    for i in range(30):
        machine.add([i] * 24, 1)
    machine.run()
    assert len(outside.blocks) == 30 * 6


def test_what_was_read_across_a_reset_is_not_trusted() -> None:
    machine = restarted(64, list(range(30)))
    late = machine.add(list(range(30)), 3)
    while not machine.offload._loads:
        machine.step()
    machine.cache.pool.reset()
    machine.run()
    assert late.num_cached == 0
    assert late.tokens == expected(list(range(30)), 3)


def test_right_drafts_save_steps() -> None:
    def steps(guesses: random.Random | None) -> int:
        machine = Machine(num_blocks=20, guesses=guesses)
        machine.add([1, 2, 3], 30)
        count = 0
        while machine.scheduler.has_work:
            machine.step()
            count += 1
        assert machine.finished[0].tokens == expected([1, 2, 3], 30)
        assert guesses is None or (machine.num_right and machine.num_wrong)
        return count

    assert steps(random.Random(3)) < steps(None) == 30


def run_random_schedule(machine: Machine, rng: random.Random) -> None:
    shared = [rng.randrange(5) for _ in range(30)]
    sequences = {}
    aborted = set()
    for _ in range(rng.randint(1, 12)):
        prompt = shared[: rng.randint(0, 30)] + [rng.randrange(5) for _ in range(rng.randint(1, 15))]
        answer = rng.randint(1, 12)
        encoder = tuple(rng.randrange(3) for _ in range(rng.choice([1, 2, 9, 40])))
        read = () if machine.encoder_group is None else encoder
        pictures, spans = random_pictures(rng, len(prompt)) if rng.random() < 0.5 else ([], [])
        adapter = rng.choice([None, None, b"a", b"b", b"c"])
        sequence = machine.add(prompt, answer, rng.choice([0, 0, 1, -1]), read, pictures, spans, adapter)
        sequences[sequence.seq_id] = (sequence, prompt, answer)
        for _ in range(rng.randint(0, 3)):
            if machine.scheduler.has_work:
                assert machine.step() or machine.offload is not None
        if rng.random() < 0.15:
            victim = rng.choice(list(sequences.values()))[0]
            if victim.status is not Status.FINISHED:
                aborted.add(victim.seq_id)
            machine.scheduler.finish(victim)
        if rng.random() < 0.1 and machine.scheduler.running:
            machine.scheduler.preempt(rng.choice(machine.scheduler.running))
    machine.run()
    for arrival, (sequence, prompt, answer) in sequences.items():
        assert sequence.status is Status.FINISHED
        if arrival not in aborted:
            # Whatever was cached, chunked or preempted: the tokens are those of an undisturbed run.
            assert sequence.tokens == expected(prompt, answer)
    pool = machine.cache.pool
    assert all(pool._references[b] == 0 for b in range(1, machine.num_blocks + 1))
    assert pool.num_free == machine.num_blocks
    assert machine.scheduler.num_waiting == 0
    assert machine.scheduler.features._held_rows == 0
    assert not machine.scheduler.running_adapters


def test_full_pool_preempts_and_recovers() -> None:
    machine = Machine(num_blocks=8, max_sequences=4, max_tokens=32, prefix_caching=False)
    sequences = [machine.add([i] * 8, 20) for i in range(4)]
    machine.run()
    assert machine.scheduler.num_preemptions > 0
    assert [s.tokens for s in sequences] == [expected([i] * 8, 20) for i in range(4)]


def test_first_come_first_served() -> None:
    machine = Machine(num_blocks=64, max_sequences=1)
    for i in range(5):
        machine.add([i] * 3, 2)
    machine.run()
    assert [s.seq_id for s in machine.finished] == [1, 2, 3, 4, 5]


def test_smaller_priority_runs_sooner() -> None:
    machine = Machine(num_blocks=64, max_sequences=1)
    for priority in (5, 1, 3):
        machine.add([priority] * 3, 2, priority=priority)
    machine.run()
    assert [s.priority for s in machine.finished] == [1, 3, 5]


def test_nobody_starves_behind_late_comers() -> None:
    """New short requests arrive at every step; a long early one still advances at every step it can."""
    machine = Machine(num_blocks=40, max_sequences=3, max_tokens=8)
    rng = random.Random(0)
    early = machine.add([1] * 40, 10)
    for _ in range(200):
        machine.add([rng.randrange(5)] * 4, 3)
        machine.step()
        if early.status is Status.FINISHED:
            break
    assert early.status is Status.FINISHED
    assert early.num_preemptions == 0


def test_an_adapter_without_room_lets_others_pass_and_does_not_starve() -> None:
    """Requests of the adapter that runs, and of none, come at every step; that of another one still gets its turn."""
    machine = Machine(num_blocks=200, max_sequences=4, max_tokens=32)
    machine.add([1] * 4, 3, adapter=b"a")
    machine.step()
    other = machine.add([2] * 4, 3, adapter=b"b")
    for i in range(400):
        machine.add([i % 5] * 4, 3, adapter=b"a" if i % 3 else None)
        machine.step()
        if other.status is Status.FINISHED:
            break
    assert other.status is Status.FINISHED
    assert any(s.seq_id > other.seq_id for s in machine.finished)  # it was passed
    machine.run()


def test_many_adapters_wait_in_order() -> None:
    machine = Machine(num_blocks=200, max_adapters=2)
    for i in range(300):
        machine.add([i % 5] * 3, 2, adapter=bytes([i % 100]))
    machine.run()
    assert len(machine.finished) == 300
    assert {s.seq_id for s in machine.finished[:100]} <= set(range(1, 170))


def test_long_prompt_does_not_hold_up_decoding() -> None:
    machine = Machine(num_blocks=64, max_tokens=8)
    short = machine.add([1, 2], 30)
    machine.step()
    machine.add([3] * 60, 1)
    before = len(short.tokens)
    machine.step()
    assert len(short.tokens) == before + 1


def test_prefix_is_found_and_half_blocks_are_not() -> None:
    machine = Machine(num_blocks=32)
    machine.add([1, 2, 3, 4, 5, 6, 7, 8, 9], 1)
    machine.run()
    again = machine.add([1, 2, 3, 4, 5, 6, 7, 8, 9], 1)
    other = machine.add([1, 2, 3, 4, 5, 6, 7, 0, 9], 1)
    machine.run()
    assert again.num_cached == 8
    assert other.num_cached == 4


def test_whole_prompt_in_cache_leaves_a_token_to_compute() -> None:
    machine = Machine(num_blocks=32)
    machine.add([1, 2, 3, 4, 5, 6, 7, 8], 1)
    machine.run()
    again = machine.add([1, 2, 3, 4, 5, 6, 7, 8], 1)
    machine.run()
    assert again.num_cached == 4


def test_equal_prompts_of_one_step_share() -> None:
    machine = Machine(num_blocks=32, max_tokens=64)
    machine.add([5] * 12, 2)
    second = machine.add([5] * 12, 2)
    machine.step()
    assert second.num_cached == 8


def test_salt_keeps_prompts_apart() -> None:
    machine = Machine(num_blocks=32)
    machine.add([5] * 12, 1)
    machine.run()
    salted = machine.add([5] * 12, 1)
    salted.chain.fields["salt"] = b"another tenant"
    machine.run()
    assert salted.num_cached == 0


def test_rows_of_a_feature_are_made_once_for_all_that_bring_it() -> None:
    machine = Machine(num_blocks=64, windows=(None, None), encoder_group=1, max_tokens=64)
    first = [machine.add([i] * 5, 20, features=(1, 2, 3, 4, 5)) for i in range(2)]
    other = machine.add([1] * 5, 2, features=(1, 2, 3, 4, 6))
    machine.step()
    assert machine.num_encoded == 2
    assert first[0].blocks.tables[1] == first[1].blocks.tables[1] != other.blocks.tables[1]
    late = machine.add([3] * 5, 2, features=(1, 2, 3, 4, 5))
    machine.scheduler.preempt(first[0])
    machine.run()
    assert machine.num_encoded == 2
    assert late.tokens == expected([3] * 5, 2)


def test_rows_of_a_feature_count_in_the_budget_only_where_they_are_made() -> None:
    machine = Machine(num_blocks=64, windows=(None, None), encoder_group=1, max_tokens=16)
    for i in range(4):
        machine.add([i] * 2, 5, features=tuple(range(10)))
    assert len(machine.step()) == 3  # 10 rows and 3 times 2 tokens
    assert machine.num_encoded == 1


def test_a_sequence_that_grows_past_its_threshold_is_computed_anew() -> None:
    machine = Machine(num_blocks=64, max_tokens=64)
    grown = machine.add([1] * 14, 6)
    grown.recompute_beyond = 16
    while len(grown.tokens) < 17:
        machine.step()
    machine.scheduler.recompute_if_grown(grown)
    assert (grown.num_preemptions, grown.num_computed, grown.blocks) == (1, 0, None)
    machine.scheduler.recompute_if_grown(grown)  # and not again
    again = machine.add([1] * 14, 1)  # whose keys are still those of short sequences
    machine.run()
    assert grown.num_preemptions == 1
    assert grown.tokens == expected([1] * 14, 6)
    assert again.num_cached == 12


def test_window_gives_blocks_back() -> None:
    machine = Machine(num_blocks=12, windows=(6,), max_sequences=1, prefix_caching=False)
    sequence = machine.add([1] * 4, 100)
    for _ in range(50):
        machine.step()
        assert machine.num_blocks - machine.cache.pool.num_free <= 3
    assert len(sequence.tokens) > 50


def test_chunk_gives_blocks_back() -> None:
    machine = Machine(num_blocks=12, windows=(Chunk(8),), max_sequences=1, prefix_caching=False)
    sequence = machine.add([1] * 4, 100)
    held = list[int]()
    for _ in range(50):
        machine.step()
        held.append(machine.num_blocks - machine.cache.pool.num_free)
    assert len(sequence.tokens) > 50
    assert set(held[10:]) == {1, 2}  # of four tokens each


def test_a_prefix_needs_of_chunks_what_the_next_token_sees() -> None:
    machine = Machine(num_blocks=64, max_tokens=64, windows=(None, Chunk(12)))
    first = machine.add([1] * 26, 1)
    machine.run()
    pool = machine.cache.pool
    for known in first.chain.hashes[:5]:
        del pool._key_of[pool._block_of.pop((1, known))]
    at_a_border, before = machine.add([1] * 30, 1), machine.add([1] * 22, 1)
    machine.run()
    assert [s.num_cached for s in (at_a_border, before)] == [24, 12]


def test_a_step_does_as_much_whatever_waits() -> None:
    assert instructions_of_steps(10_000) == pytest.approx(instructions_of_steps(10), rel=0.01)


def instructions_of_steps(waiting: int) -> int:
    """Of twenty steps of 64 sequences, while so many others wait."""
    machine = Machine(num_blocks=4096, block_size=16, max_sequences=64, max_tokens=512, prefix_caching=False)
    for i in range(64 + waiting):
        machine.add([i % 5] * 8, 40)
    machine.scheduler.schedule()
    for sequence in machine.scheduler.running:
        sequence.num_computed = len(sequence.tokens)
        sequence.tokens.append(1)

    def steps() -> None:
        for _ in range(20):
            for entry in machine.scheduler.schedule():
                entry.sequence.num_computed += entry.num_tokens
                entry.sequence.tokens.append(1)

    return instructions(steps)


def test_what_comes_later_in_a_span_that_sees_both_ways_decides_its_first_keys() -> None:
    machine = Machine(num_blocks=64, max_tokens=64)
    span = [(0, 16)]
    machine.add([1] * 8 + [2] * 8, 1, both_ways=span)
    machine.run()
    other = machine.add([1] * 8 + [3] * 8, 1, both_ways=span)
    same = machine.add([1] * 8 + [2] * 8, 1, both_ways=span)
    causal = machine.add([1] * 8 + [2] * 8, 1)
    machine.run()
    assert [s.num_cached for s in (other, same, causal)] == [0, 12, 0]


def test_a_window_hides_no_part_of_a_span_that_was_cached() -> None:
    machine = Machine(num_blocks=64, max_tokens=64, windows=(None, 5))
    prompt, span = [1] * 4 + [2] * 10, [(4, 14)]
    machine.add(prompt, 1, both_ways=span)
    machine.run()
    same = machine.add(prompt, 1, both_ways=span)
    machine.run()
    assert same.num_cached == 4


def test_a_picture_decides_the_blocks_from_its_own_on() -> None:
    machine = Machine(num_blocks=64, max_tokens=64)
    prompt = [1] * 6 + [0] * 6 + [2] * 4
    machine.add(prompt, 1, pictures=[picture(6, 6, 1)])
    machine.run()
    other = machine.add(prompt, 1, pictures=[picture(6, 6, 2)])
    same = machine.add(prompt, 1, pictures=[picture(6, 6, 1)])
    machine.run()
    assert [s.num_cached for s in (other, same)] == [4, 12]
    assert machine.scheduler.features.num_computed == 2
