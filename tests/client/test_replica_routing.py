"""Where requests go: by the longest prefix, weighed against work, to replicas that run."""

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.client.replica_routing import SEQUENCE_TOKENS, PrefixTable, Route, Router

BLOCK = 16


def chain(*letters: int) -> list[bytes]:
    """Hashes of blocks, each of all before it."""
    return [bytes(letters[: i + 1]) for i in range(len(letters))]


def send(router: Router, running: list[int], hashes: list[bytes], num_tokens: int, sequences: int = 1) -> Route:
    number, to_read = router.rank(running, num_tokens, hashes)[0]
    return router.start(number, to_read, sequences, hashes)


blocks = st.lists(st.integers(0, 2), max_size=6)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("send"), blocks, st.integers(1, 4)),
        st.tuples(st.just("read"), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("end"), st.integers(0, 99), st.integers(0, 4)),
        st.tuples(st.just("die"), st.integers(0, 99), st.just(0)),
        st.tuples(st.just("live"), st.integers(0, 99), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8), actions)
def test_counts_are_of_what_is_left_and_nobody_dead_is_chosen(count: int, capacity: int, given_actions: list) -> None:
    router = Router([capacity] * count, BLOCK)
    running = set(range(count))
    routes: list[Route] = []
    for action, what, number in given_actions:
        if action == "send" and running:
            hashes = chain(*what)
            best = router.rank(running, len(what) * BLOCK + 1, hashes)
            assert {place for place, _ in best} == running
            costs = [router.replicas[place].work + to_read for place, to_read in best]
            assert costs[0] == min(costs)
            assert all(1 <= to_read <= len(what) * BLOCK + 1 for _, to_read in best)
            routes.append(router.start(*best[0], number, hashes))
        elif action == "read" and routes:
            router.has_read(routes[what % len(routes)])
        elif action == "end" and routes:
            route = routes[what % len(routes)]
            if router.end(route, [number] if number < 4 else None):
                routes.remove(route)
        elif action == "die":
            dead = what % count
            running.discard(dead)
            router.forget(dead)
            for route in [r for r in routes if r.replica == dead]:
                assert router.end(route)
                routes.remove(route)
            assert router.replicas[dead].work == 0
        elif action == "live":
            running.add(what % count)
        for place, replica in enumerate(router.replicas):
            mine = [r for r in routes if r.replica == place]
            assert replica.prompt_tokens == sum(r.prompt_tokens for r in mine)
            assert replica.sequences == sum(len(r.sequences) for r in mine)
            assert len(replica.table) <= capacity


@given(st.integers(2, 5), st.integers(1, 400), st.integers(1, 40))
def test_even_where_nothing_is_shared(count: int, num_tokens: int, requests: int) -> None:
    router = Router([1000] * count, BLOCK)
    sent = [send(router, list(range(count)), [bytes([i])], num_tokens) for i in range(requests)]
    numbers = [sum(route.replica == place for route in sent) for place in range(count)]
    assert max(numbers) - min(numbers) <= 1


@given(st.integers(1, 60), st.integers(0, 8))
def test_sticky_where_it_pays(shared: int, others: int) -> None:
    """The holder of a prefix is chosen as long as it is busier by no more than the prefix is worth."""
    router = Router([1000, 1000], BLOCK)
    hashes = chain(*range(shared))
    holder = send(router, [0, 1], hashes, BLOCK * shared + 1).replica
    router.has_read(Route(holder, BLOCK * shared + 1))
    for _ in range(others):
        router.start(holder, 1, 1, [])
    difference = router.replicas[holder].work - router.replicas[1 - holder].work
    chosen = send(router, [0, 1], [*hashes, b"more"], BLOCK * (shared + 1) + 1).replica
    if difference != BLOCK * shared:
        assert (chosen == holder) == (difference < BLOCK * shared)
    assert difference >= SEQUENCE_TOKENS * (others + 1)


def test_conversations_stay_where_they_are() -> None:
    """Each of several that go on in turn finds its own replica again, though all are as long."""
    router = Router([1000] * 3, BLOCK)
    places: dict[int, int] = {}
    for turn in range(1, 6):
        for talk in range(7):
            hashes = chain(talk, *range(4 * turn))
            route = send(router, [0, 1, 2], hashes, len(hashes) * BLOCK + 5)
            assert places.setdefault(talk, route.replica) == route.replica
            router.end(route)
    assert set(places.values()) == {0, 1, 2}


def test_what_was_used_last_is_kept_and_sequences_go_from_their_ends() -> None:
    table = PrefixTable(5)
    table.add(chain(1, 2, 3))
    table.add(chain(4, 5))
    assert (table.count(chain(1, 2, 3)), table.count(chain(4, 5, 6))) == (3, 2)
    table.add(chain(1, 2))
    table.add(chain(7, 8))
    assert table.count(chain(1, 2, 3)) == 2
    assert table.count(chain(7, 8)) == 2
    assert table.count(chain(4, 5)) == 1
    table.add(chain(*range(9)))
    assert table.count(chain(*range(9))) == len(table) == 5
    table.clear()
    assert table.count(chain(1)) == len(table) == 0
