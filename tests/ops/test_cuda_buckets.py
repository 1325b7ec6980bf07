"""Which numbers of tokens share a CUDA graph, which graphs are kept, how buffers share memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse_runtime.ops.cuda.buffers import Buffer, place
from sparse_runtime.ops.cuda.graphs import (
    GRAPHS_VARIABLE,
    MOST_GRAPHS,
    GraphCache,
    block_bucket,
    graphs_to_keep,
    token_bucket,
    token_buckets,
)


def test_buckets_are_fine_up_to_128_and_then_eight_a_doubling() -> None:
    assert token_buckets(512) == [
        *range(16, 129, 16),
        *range(144, 257, 16),
        *range(288, 513, 32),
    ]
    assert len(token_buckets(4096)) == 8 + 5 * 8
    assert token_buckets(4096)[-2:] == [3840, 4096]


@given(st.integers(1, 100_000))
def test_a_bucket_holds_its_tokens_and_adds_an_eighth_at_most(tokens: int) -> None:
    bucket = token_bucket(tokens)
    assert bucket >= tokens and bucket % 16 == 0
    assert token_bucket(bucket) == bucket  # a bucket is its own
    assert bucket - tokens < max(16, tokens / 8 + 1)


@given(st.integers(0, 10_000))
def test_query_blocks_are_padded_to_powers_of_two(blocks: int) -> None:
    bucket = block_bucket(blocks)
    assert bucket >= max(blocks, 8) and bucket & (bucket - 1) == 0
    assert bucket == 8 or bucket < 2 * blocks


class FakeGraph:
    """Replays what was launched while it was captured."""

    def __init__(self, launch: Callable[[], None], events: list[str]) -> None:
        self.launch, self.events = launch, events
        events.append("capture")

    def replay(self) -> None:
        self.events.append("replay")


def cache_of(most: int, events: list[str]) -> GraphCache:
    return GraphCache(most, lambda f: FakeGraph(f, events), lambda: events.append("wait"))


def test_a_bucket_is_launched_then_captured_then_replayed() -> None:
    events: list[str] = []
    cache = cache_of(4, events)
    for _ in range(4):
        cache.run("a", lambda: events.append("launch"))
    assert events == ["launch", "capture", "replay", "replay", "replay"]
    cache.run("b", lambda: events.append("launch"))
    assert events[-1] == "launch" and len(cache) == 1


def test_the_least_recently_used_graph_goes_first() -> None:
    events: list[str] = []
    cache = cache_of(2, events)

    def run(key: str) -> list[str]:
        events.clear()
        cache.run(key, lambda: events.append(f"launch {key}"))
        return list(events)

    for key in "aabb":
        run(key)
    assert run("a") == ["replay"]  # b is now the older one
    assert run("c") == ["launch c"]
    assert run("c") == ["capture", "wait", "replay"]  # the device may still be running b
    assert len(cache) == 2
    assert run("a") == ["replay"]
    assert run("b") == ["capture", "wait", "replay"]  # it was seen before: captured anew


def test_buckets_seen_once_are_forgotten_in_time() -> None:
    events: list[str] = []
    cache = cache_of(2, events)
    for key in range(100):
        cache.run(key, lambda: None)
    assert len(cache._seen) == 8 and len(cache) == 0


def test_a_failed_capture_warns_once_and_goes_on_without_graphs() -> None:
    launched = []

    def capture(launch: Callable[[], None]) -> FakeGraph:
        raise RuntimeError("operation not permitted when stream is capturing")

    cache = GraphCache(4, capture, lambda: None)
    cache.run("a", lambda: launched.append("a"))
    with pytest.warns(UserWarning, match="could not be captured: operation not permitted"):
        cache.run("a", lambda: launched.append("a"))
    for key in "aab":
        cache.run(key, lambda: launched.append("later"))
    assert launched == ["a", "a", "later", "later", "later"]


def test_no_graphs_to_keep_captures_none() -> None:
    events: list[str] = []
    cache = cache_of(0, events)
    for _ in range(3):
        cache.run("a", lambda: events.append("launch"))
    assert events == ["launch"] * 3


def test_the_environment_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(GRAPHS_VARIABLE, raising=False)
    assert graphs_to_keep() == MOST_GRAPHS
    monkeypatch.setenv(GRAPHS_VARIABLE, "0")
    assert graphs_to_keep() == 0
    monkeypatch.setenv(GRAPHS_VARIABLE, "off")
    with pytest.raises(ValueError, match="SPARSE_RUNTIME_CUDA_GRAPHS='off': expected how many"):
        graphs_to_keep()


lives = st.tuples(st.integers(1, 64), st.integers(0, 9), st.integers(0, 9))


@given(st.lists(lives, max_size=20))
def test_buffers_that_are_alive_together_do_not_overlap(drawn: list[tuple[int, int, int]]) -> None:
    buffers = [Buffer(size, min(a, b), max(a, b)) for size, a, b in drawn]
    whole = place(buffers)
    for i, one in enumerate(buffers):
        assert one.offset >= 0 and one.offset + one.size <= whole
        for other in buffers[:i]:
            apart = one.offset + one.size <= other.offset or other.offset + other.size <= one.offset
            assert apart or not one.meets(other)


def test_buffers_of_different_times_share_memory() -> None:
    assert place([Buffer(8, 0, 1), Buffer(8, 2, 3), Buffer(4, 4, 5)]) == 8
    assert place([Buffer(8, 0, 2), Buffer(8, 2, 3)]) == 16  # read in the step that writes
