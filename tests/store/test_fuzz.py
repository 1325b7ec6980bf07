"""Random damage: the result is a FormatError or a model that holds its own checks, nothing else."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparse_runtime.store import FormatError, load, save

ONE_DIRECTORY_FOR_ALL_EXAMPLES = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def loads_soundly_or_is_refused(directory: Path) -> bool:
    """Whether it loads; any exception but FormatError is a failure of the test."""
    try:
        model = load(directory)
    except FormatError as error:
        assert str(error)
        return False
    for linear in model.linears.values():
        linear.packed.validate()
        assert tuple(linear.packed.unpack().shape) == linear.packed.spec.shape
    # Equal to itself on disk: what was accepted can be written.
    save(model, directory.parent / "again", overwrite=True)
    load(directory.parent / "again")
    return True


def mutate(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    kind = rng.choice(["bit", "byte", "bytes", "truncate", "insert", "duplicate", "delete", "swap"])
    at = rng.randrange(len(data))
    other = rng.randrange(len(data))
    length = rng.choice([1, 2, 4, 8, 64])
    if kind == "bit":
        data[at] ^= 1 << rng.randrange(8)
    elif kind == "byte":
        data[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, *b'"0-9{}[],:.'])
    elif kind == "bytes":
        data[at : at + length] = rng.randbytes(len(data[at : at + length]))
    elif kind == "truncate":
        del data[at:]
    elif kind == "insert":
        data[at:at] = rng.randbytes(length)
    elif kind == "duplicate":
        data[at:at] = data[at : at + length]
    elif kind == "delete":
        del data[at : at + length]
    else:
        data[at : at + length], data[other : other + length] = (
            data[other : other + length],
            data[at : at + length],
        )
    return bytes(data)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_seeded_damage(saved: Path, name: str) -> None:
    raw = (saved / name).read_bytes()
    header_end = 8 + int.from_bytes(raw[:8], "little") if name == "model.safetensors" else len(raw)
    accepted = 0
    for seed in range(400):
        rng = random.Random(seed)
        # Half of the damage to the weights goes to the header, which is most of what is checked.
        cut = header_end if seed % 2 else 0
        damaged = mutate(raw[:cut], rng) + raw[cut:] if cut else mutate(raw, rng)
        (saved / name).write_bytes(damaged)
        accepted += loads_soundly_or_is_refused(saved)
    # Some damage is only another model, such as another weight; far from all of it is.
    assert 0 < accepted < 300


@ONE_DIRECTORY_FOR_ALL_EXAMPLES
@given(data=st.data())
def test_found_damage_to_the_weights(saved: Path, data: st.DataObject) -> None:
    pristine = saved.parent / "pristine"
    if not pristine.exists():
        pristine.write_bytes((saved / "model.safetensors").read_bytes())
    raw = bytearray(pristine.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        removed = data.draw(st.integers(0, 4))
        raw[at : at + removed] = data.draw(st.binary(max_size=4))
    (saved / "model.safetensors").write_bytes(bytes(raw))
    loads_soundly_or_is_refused(saved)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 20),
    st.sampled_from([2**31, 2**63, 10**19, -(10**19), 1e308, 0.5]),
    st.text(max_size=8),
    st.sampled_from(["dense", "2:4", "16:16", "block:4096x4096", "int4", "row", "chunk:99999999"]),
    st.sampled_from(["static", "uint8", "../x", "a" * 600, "encoder.layer.0.query", "\ud800"]),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@ONE_DIRECTORY_FOR_ALL_EXAMPLES
@given(data=st.data())
def test_found_damage_to_the_configuration(saved: Path, data: st.DataObject) -> None:
    pristine = saved.parent / "pristine"
    if not pristine.exists():
        pristine.write_bytes((saved / "config.json").read_bytes())
    config: Any = json.loads(pristine.read_bytes())
    inner, key = config, "sparse_runtime"
    # Walk into the section to some depth and put something else there.
    for _ in range(data.draw(st.integers(0, 4))):
        if not isinstance(inner[key], (dict, list)) or not inner[key]:
            break
        inner = inner[key]
        keys = sorted(inner) if isinstance(inner, dict) else range(len(inner))
        key = data.draw(st.sampled_from(keys))
    inner[key] = data.draw(VALUES)
    (saved / "config.json").write_text(json.dumps(config))
    loads_soundly_or_is_refused(saved)
