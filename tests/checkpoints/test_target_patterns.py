"""The patterns of ``targets`` agree with Python's re, and are refused where they cannot."""

from __future__ import annotations

import random
import re

import pytest

from sparse_runtime.checkpoints import CheckpointError
from sparse_runtime.checkpoints.layouts.compressed_tensors.patterns import Pattern
from sparse_runtime.checkpoints.layouts.compressed_tensors.targets import Targets

PIECES = (
    *("a", "b", ".", "[ab]", "[^a]", "(a|b)", "(ab)?", "(a*b)", "a{1,2}", "(?:a|)", r"\.", r"\d"),
    *("a+", "b*", "^", "$", "(a{0,2}c)", "a+?", "(b|^)", "[]a]", r"\w{2,}"),
)


def test_random_patterns_agree_with_re() -> None:
    rng = random.Random(0)
    matched = 0
    for _ in range(1500):
        pieces = rng.choices(PIECES, k=rng.randrange(1, 5))
        text = "".join(piece + rng.choice(("", "", "", "|")) for piece in pieces)
        pattern, expected = Pattern(text), re.compile(text)
        for _ in range(10):
            name = "".join(rng.choices("abc.1]", k=rng.randrange(6)))
            assert pattern.matches(name) == (expected.match(name) is not None), (text, name)
            matched += pattern.matches(name)
    assert 2000 < matched < 14000


@pytest.mark.parametrize(
    "text", [r".*attention\.self\.(query|key|value)$", r"bert\.encoder\.layer\.[0-9]+\..*dense"]
)
def test_patterns_as_they_are_written(text: str) -> None:
    for name in ("bert.encoder.layer.11.attention.self.key", "bert.encoder.layer.3.output.dense"):
        for other in (name, name + ".x", "x." + name, name.replace(".", "-")):
            assert Pattern(text).matches(other) == (re.match(text, other) is not None)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "(?=a)",
            "(?!a)",
            "(?i)a",
            r"(a)\1",
            "(a",
            "a)",
            "*a",
            "a**",
            "a*+",
            "a{3,2}",
            "[a",
            "a\n",
        ),
        *(r"\b", "(?P<x>a)", "(" * 400, "a{65}", "a" * 501, "((a{64}){64}){9}", "\\"),
    ],
)
def test_what_is_not_taken(text: str) -> None:
    with pytest.raises(ValueError):
        Pattern(text)


def test_a_list_of_patterns_has_the_bound_of_one() -> None:
    words = [f"re:(.?){{60}}{number}" for number in range(30)]  # some 180 states each
    assert Targets.of(words[:2], "ignore").matched("a.b0", "Linear") == [words[0]]
    with pytest.raises(CheckpointError, match=r"ignore: .* at most 4000 states together"):
        Targets.of(words, "ignore")
