"""The description of a layer: strings and JSON both ways, and every bad value refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparse_runtime.spec import (
    DYNAMIC_ACTIVATIONS,
    MAX_BLOCK,
    VALUE_DTYPES,
    ActivationSpec,
    LinearSpec,
    QuantizedAttention,
    Structure,
    ValueSpec,
)

STRUCTURES = st.one_of(
    st.sampled_from([Structure("dense"), Structure("unstructured")]),
    st.tuples(st.integers(1, 15), st.integers(2, 16))
    .filter(lambda nm: nm[0] < nm[1])
    .map(lambda nm: Structure("nm", n=nm[0], m=nm[1])),
    st.tuples(st.integers(1, MAX_BLOCK), st.integers(1, MAX_BLOCK)).map(
        lambda rc: Structure("block", rows=rc[0], cols=rc[1])
    ),
)
VALUES = st.builds(
    ValueSpec.parse,
    st.sampled_from(VALUE_DTYPES),
    st.one_of(
        st.sampled_from(["tensor", "row"]),
        st.integers(1, 9999).map("chunk:{}".format),
        st.integers(1, 9999).map("group:{}".format),
    ),
)
FULL_RANGE = ActivationSpec("dynamic", "int8", narrow_range=False)
DYNAMIC = [*sorted(DYNAMIC_ACTIVATIONS.values(), key=str), FULL_RANGE]
STATIC = st.one_of(
    st.builds(
        ActivationSpec,
        st.just("static"),
        st.just("int8"),
        st.floats(1e-30, 1e30),
        st.integers(-128, 127),
    ),
    st.builds(
        ActivationSpec,
        st.just("static"),
        st.just("uint8"),
        st.floats(1e-30, 1e30),
        st.integers(0, 255),
    ),
)


@st.composite
def specs(draw: st.DrawFn) -> LinearSpec:
    values, structure = draw(VALUES), draw(STRUCTURES)
    activations = outputs = None
    if values.is_integer:
        activations = draw(st.one_of(st.none(), st.sampled_from(DYNAMIC), STATIC))
        zero_points = structure.kind == "dense" and draw(st.booleans())
        values = dataclasses.replace(values, zero_points=zero_points)
    if activations is not None and activations.scheme == "static":
        outputs = draw(st.one_of(st.none(), STATIC))
    shape = (draw(st.integers(1, 5000)), draw(st.integers(1, 5000)))
    return LinearSpec(shape, structure, values, activations, outputs)


@given(STRUCTURES)
def test_a_structure_reads_back_from_its_string(structure: Structure) -> None:
    assert Structure.parse(str(structure)) == structure


@given(specs())
def test_a_spec_reads_back_from_json(spec: LinearSpec) -> None:
    data = json.loads(json.dumps(spec.to_dict()))
    again = LinearSpec.from_dict(data)
    assert again == spec
    assert again.to_dict() == data


def test_floats_have_no_scales_whatever_was_named() -> None:
    assert ValueSpec.parse("fp32", "chunk:4") == ValueSpec("fp32")
    assert ValueSpec.parse("bf16", "tensor").scale_count(7, 9) == 0


@pytest.mark.parametrize(
    ("scales", "count"),
    [("tensor", 1), ("row", 7), ("chunk:3", 3), ("chunk:7", 1), ("chunk:8", 1), ("group:4", 21)],
)
def test_scales_are_counted_by_granularity(scales: str, count: int) -> None:
    assert ValueSpec.parse("int8", scales).scale_count(7, 9) == count


@pytest.mark.parametrize(
    "text",
    # Near misses, numbers that int() would take, and bounds.
    (
        *("", "Dense", " dense", "auto"),
        *("2:4 ", "4:2", "2:2", "0:4", "2:17", "02:4", "２:４", "2:4:8", "123456789:4"),
        *("block", "block:4", "block:4x", "block:0x4", "block:4x4097", "block:-1x4", "block:04x1"),
    ),
)
def test_a_bad_structure_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="structure") as caught:
        Structure.parse(text)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "banana"},
        {"kind": "dense", "n": 2, "m": 4},
        {"kind": "unstructured", "rows": 1, "cols": 1},
        {"kind": "nm", "n": 2, "m": 4, "rows": 1},
        {"kind": "block", "rows": 4, "cols": 1, "m": 4},
        {"kind": "block"},
        {"kind": "nm"},
    ],
)
def test_a_structure_has_the_fields_of_its_kind_alone(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="structure"):
        Structure(**arguments)


@pytest.mark.parametrize(
    ("dtype", "scales", "named"),
    [
        ("int3", "row", "'int3'"),
        ("FP32", "row", "'FP32'"),
        ("int8", "rows", "'rows'"),
        ("int8", "chunk", "'chunk'"),
        ("int8", "chunk:0", "'chunk'"),
        ("int8", "chunk:-2", "'chunk:-2'"),
        ("int8", "chunk:１", "'chunk:１'"),
        ("int8", "group", "'group'"),
        ("int8", "group:0", "'group'"),
        ("int8", "group:-2", "'group:-2'"),
        ("int8", "group:08", "'group:08'"),
    ],
)
def test_bad_values_and_scales_are_refused_by_name(dtype: str, scales: str, named: str) -> None:
    with pytest.raises(ValueError) as caught:
        ValueSpec.parse(dtype, scales)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"scheme": "sometimes"}, "sometimes"),
        ({"dtype": "int16"}, "int16"),
        ({"dtype": "uint8", "zero_point": 3}, "dynamic"),
        ({"scheme": "dynamic", "scale": 1.0}, "dynamic"),
        ({"scheme": "static"}, "scale"),
        ({"scheme": "static", "scale": float("nan")}, "nan"),
        ({"scheme": "static", "scale": float("inf")}, "inf"),
        ({"scheme": "static", "scale": -1.0}, "-1.0"),
        ({"scheme": "static", "scale": 1e-39}, "1e-39"),  # subnormal in float32
        ({"scheme": "static", "scale": 1e39}, "1e+39"),  # infinite in float32
        ({"dtype": "uint8", "narrow_range": False}, "narrow_range belongs to dynamic int8"),
        ({"scheme": "static", "scale": 1.0, "narrow_range": False}, "narrow_range belongs to"),
        ({"scheme": "static", "scale": 1.0, "zero_point": 128}, "128"),
        ({"scheme": "static", "scale": 1.0, "zero_point": -1, "dtype": "uint8"}, "-1"),
    ],
)
def test_bad_activations_are_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        ActivationSpec(**arguments)
    assert named in str(caught.value)


GOOD = LinearSpec(
    (4, 8), Structure.parse("2:4"), ValueSpec("int8"), ActivationSpec("static", "uint8", 0.5, 7)
).to_dict()


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("shape",), [4], "(4,)"),
        (("shape",), [4, 8, 2], "(4, 8, 2)"),
        (("shape",), [0, 8], "(0, 8)"),
        (("shape",), [-1, 8], "(-1, 8)"),
        (("shape",), [2**20, 2**20], "1048576"),
        (("shape",), [4, True], "True"),
        (("shape",), [4.0, 8], "4.0"),
        (("shape",), "4x8", "'4x8'"),
        (("structure",), None, "None"),
        (("structure",), "3:2", "3:2"),
        (("values",), 8, "8"),
        (("values",), "int5", "int5"),
        (("scales",), None, "None"),
        (("scales",), 3, "3"),
        (("scales",), ["row"], "['row']"),
        (("activations",), "dynamic", "str"),
        (("activations",), [], "list"),
        (("activations", "scheme"), ["static"], "unknown keys"),
        (("activations", "dtype"), {}, "{}"),
        (("activations", "scale"), "1", "'1'"),
        (("activations", "scale"), True, "True"),
        (("activations", "scale"), 10**400, "inf"),
        (("activations", "zero_point"), 7.0, "7.0"),
        (("activations", "zero_point"), 256, "256"),
        (("activations", "unknown"), 1, "unknown"),
        (("activations", "narrow_range"), True, "unknown keys ['narrow_range']"),
        (("activations",), {"scheme": "dynamic", "dtype": "int8", "narrow_range": 1}, "1"),
        (("activations",), {"scheme": "dynamic", "dtype": "uint8", "narrow_range": True}, "uint8"),
        (("activations",), {"scheme": "dynamic", "dtype": "int8", "scale": 1.0}, "scale"),
        (("outputs",), "static", "outputs: expected a JSON object, got str"),
        (("outputs",), {"scheme": "dynamic", "dtype": "int8"}, "outputs: expected a static"),
        (("outputs",), {"scheme": "static", "dtype": "int8"}, "outputs: missing keys"),
        (("zero_points",), True, "zero_points: expected a dense structure, got 2:4"),
        (("zero_points",), None, "None: expected true or false"),
        (("zero_points",), 1, "1: expected true or false"),
        (("scales",), "group:0", "'group'"),
        (("surprise",), 1, "surprise"),
    ],
)
def test_bad_json_is_refused_by_name(path: tuple[str, ...], value: Any, named: str) -> None:
    data = copy.deepcopy(GOOD)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    with pytest.raises(ValueError) as caught:
        LinearSpec.from_dict(data)
    assert named in str(caught.value)


@pytest.mark.parametrize("key", sorted(GOOD))
def test_every_key_is_needed(key: str) -> None:
    data = {k: v for k, v in GOOD.items() if k != key}
    with pytest.raises(ValueError, match=key):
        LinearSpec.from_dict(data)


def test_floats_take_neither_scales_nor_quantized_activations() -> None:
    floats = GOOD | {"values": "fp16"}
    with pytest.raises(ValueError, match="scales 'row'"):
        LinearSpec.from_dict(floats)
    with pytest.raises(ValueError, match="fp16"):
        LinearSpec.from_dict(floats | {"scales": None})


@pytest.mark.parametrize("data", [None, [], "layer", 3])
def test_a_layer_is_a_json_object(data: Any) -> None:
    with pytest.raises(ValueError, match="layer: expected a JSON object"):
        LinearSpec.from_dict(data)


def test_keys_that_older_files_lack_read_as_their_defaults() -> None:
    assert {"outputs", "zero_points"}.isdisjoint(GOOD)
    spec = LinearSpec.from_dict(GOOD)
    assert (spec.outputs, spec.values.zero_points) == (None, False)
    old = GOOD | {"activations": {"scheme": "dynamic", "dtype": "int8"}}
    assert LinearSpec.from_dict(old).activations == ActivationSpec("dynamic", "int8")
    # The range is always written, so that no later reader has to know the default.
    written = LinearSpec.from_dict(old).to_dict()["activations"]
    assert written == {"scheme": "dynamic", "dtype": "int8", "narrow_range": True}


def test_outputs_are_requantized_behind_static_inputs_only() -> None:
    outputs = ActivationSpec("static", "int8", 0.5)
    for activations, named in ((None, "none"), (FULL_RANGE, "dynamic ones")):
        with pytest.raises(ValueError, match=f"beside quantized outputs, got {named}"):
            LinearSpec((4, 8), Structure("dense"), ValueSpec("int8"), activations, outputs)


def test_zero_points_and_groups_belong_to_integers() -> None:
    with pytest.raises(ValueError, match="zero_points: fp16 values have none"):
        ValueSpec("fp16", zero_points=True)
    with pytest.raises(ValueError, match="group_cols is at least 1 for 'group' and 0 otherwise"):
        ValueSpec("int8", group_cols=4)
    assert ValueSpec.parse("fp32", "group:4") == ValueSpec("fp32")


ATTENTION = QuantizedAttention(
    query=ActivationSpec("static", "uint8", 0.5, 7), context=ActivationSpec("static", "int8", 0.25)
)


def test_quantized_attention_reads_back_from_json() -> None:
    data = json.loads(json.dumps(ATTENTION.to_dict()))
    assert set(data) == {"query", "key", "probabilities", "value", "scores", "context"}
    assert QuantizedAttention.from_dict(data) == ATTENTION
    assert set(ATTENTION.parts()) == {"query", "context"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surprise": None}, "unknown keys ['surprise']"),
        ({"query": None, "context": None}, "expected at least one quantizer, got none"),
        ({"key": {"scheme": "dynamic", "dtype": "int8"}}, "attention key: expected a static"),
        ({"key": "static"}, "key: expected a JSON object, got str"),
        ({"key": {"scheme": "static", "dtype": "int8", "scale": 0, "zero_point": 0}}, "above 0"),
        ({"key": {"scheme": "static", "dtype": "int8", "scale": 1, "zero_point": 128}}, "128"),
    ],
)
def test_bad_quantized_attention_is_refused_by_name(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError) as caught:
        QuantizedAttention.from_dict(ATTENTION.to_dict() | change)
    assert named in str(caught.value)
    for data in (None, [], {"query": None}):
        with pytest.raises(ValueError, match="attention: "):
            QuantizedAttention.from_dict(data)


@pytest.mark.parametrize(
    ("scales", "rows", "columns"),
    [
        ("tensor", [1, 4], [0, 6]),
        ("row", [1, 4], [0, 6]),
        ("chunk:2", [2, 3, 4], [0, 6]),  # the second chunk of two rows, and the last one of one
        ("group:3", [1, 4], [3, 4, 5, 6]),  # the second group of three columns, and the last one
        ("group:9", [0], [2, 3]),
        ("chunk:9", [0, 2], [2, 3]),
    ],
)
def test_selected_scales_are_those_of_what_is_left(
    scales: str, rows: list[int], columns: list[int]
) -> None:
    values, shape = ValueSpec.parse("int8", scales), (5, 7)
    numbers = torch.arange(float(values.scale_count(*shape)))
    at, across = torch.tensor(rows), torch.tensor(columns)
    left = values.select(numbers, shape, at, across)
    assert left.shape == (values.scale_count(len(rows), len(columns)),)
    expected = values.spread(numbers, *shape).expand(shape)[at][:, across]
    found = values.spread(left, len(rows), len(columns)).expand_as(expected)
    assert torch.equal(found, expected)
