"""Every kind of damage to a packed model's files is refused, and the refusal says what is wrong."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.store import FormatError, load

FOREIGN = "encoder.layer.2.query"
QUERY, KEY, VALUE = (f"encoder.layer.0.{part}" for part in ("query", "key", "value"))


def refused(directory: Path, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        load(directory)
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(saved, f"{name}: expected .* got no such file")
    (saved / name).mkdir()
    refused(saved, f"{name}: expected .* got no such file")


def test_shards_are_sent_to_transformers(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "model-00001-of-00002.safetensors")
    with pytest.raises(FormatError, match="in one file, got shards, which transformers alone"):
        load(saved)


def test_missing_directory(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "expected the directory of a packed model, got none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected JSON"),
        (b"\xff\xfe{}", "expected JSON in UTF-8"),
        (b"\x80\x04K\x01.", "expected JSON in UTF-8"),
        (b"[]", "expected a JSON object, got list"),
        (b"{}", "expected the section 'sparse_runtime' of a packed model, got none"),
        (b'{"a": NaN}', "expected finite numbers, got NaN"),
        (b'{"a": [-Infinity]}', "expected finite numbers, got -Infinity"),
        (b'{"a": 1e999}', "expected finite numbers, got 1e999"),
        (b'{"a": 1, "a": 2}', "expected each key once, got 'a' twice"),
        (b'{"b": {"a": 1, "a": 1}}', "expected each key once, got 'a' twice"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "expected integers of at most 20 digits"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b'{"a": "' + b" " * 2**23 + b'"}', "expected at most 8388608 bytes, got more"),
        (b'{"sparse_runtime": []}', "expected the section 'sparse_runtime' .* got list"),
    ],
)
def test_configuration_that_is_not_sound_json(saved: Path, text: bytes, message: str) -> None:
    (saved / "config.json").write_bytes(text)
    refused(saved, f"config.json: .*{message}")


SECTION: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("no version", lambda s: s.pop("format_version"), "format_version: expected 1, got None"),
    ("newer", lambda s: s.update(format_version=2), r"expected at most 1, got 2 \(a newer"),
    ("zero", lambda s: s.update(format_version=0), "format_version: expected 1, got 0"),
    ("text", lambda s: s.update(format_version="1"), "format_version: expected 1, got '1'"),
    ("true", lambda s: s.update(format_version=True), "format_version: expected 1, got True"),
    ("unknown key", lambda s: s.update(extra=1), r"unknown keys \['extra'\]"),
    ("missing key", lambda s: s.pop("tied"), r"missing keys \['tied'\]"),
    ("layers list", lambda s: s.update(layers=[]), "layers: expected dict, got list"),
    ("provenance", lambda s: s.update(provenance=None), "provenance: expected dict, got NoneType"),
    ("tensor name", lambda s: s["tensors"].append(3), "expected strings"),
    ("name twice", lambda s: s["tensors"].append(s["tensors"][0]), "expected each name once"),
    ("escaping", lambda s: s["layers"].update({"../../x": s["layers"][QUERY]}), "name '../../x'"),
    ("colliding", lambda s: s["tensors"].append(f"{QUERY}.values"), f"layer '{QUERY}' is packed"),
    ("dense too", lambda s: s["tensors"].append(f"{QUERY}.weight"), f"layer '{QUERY}' is packed"),
    ("layer", lambda s: s["layers"][QUERY].pop("shape"), rf"layers\['{QUERY}'\]: layer: missing"),
    ("structure", lambda s: s["layers"][QUERY].update(structure="4:2"), "structure 4:2: expected"),
    ("huge", lambda s: s["layers"][QUERY].update(shape=[2**40, 2**40]), "shape .*: expected two"),
    ("zeros", lambda s: s["layers"][FOREIGN].update(zero_points=1), "zero_points 1: expected true"),
    (
        "zeros of a sparse layer",
        lambda s: s["layers"][VALUE].update(zero_points=True),
        "zero_points: expected a dense structure, got 2:4",
    ),
    (
        "outputs behind dynamic inputs",
        lambda s: s["layers"][QUERY].update(outputs=s["layers"][FOREIGN]["outputs"]),
        "outputs: expected static activations .* got dynamic ones",
    ),
    ("groups", lambda s: s["layers"][FOREIGN].update(scales="group:0"), "scales 'group'"),
    ("attention list", lambda s: s.update(attention=[]), "attention: expected dict, got list"),
    (
        "attention null",
        lambda s: s.update(attention=None),
        "attention: expected dict, got NoneType",
    ),
    (
        "attention of nothing",
        lambda s: s["attention"].update({"encoder.layer.9": s["attention"]["encoder.layer.2"]}),
        "attention 'encoder.layer.9': expected the name in front of packed layers",
    ),
    (
        "attention of half a name",
        lambda s: s["attention"].update({"encoder.lay": s["attention"]["encoder.layer.2"]}),
        "attention 'encoder.lay': expected the name in front",
    ),
    (
        "attention key",
        lambda s: s["attention"]["encoder.layer.2"].pop("scores"),
        r"attention\['encoder.layer.2'\]: attention: missing keys \['scores'\]",
    ),
    (
        "attention scale",
        lambda s: s["attention"]["encoder.layer.2"]["query"].update(scale=-1),
        "activation scale -1.0: expected a finite number above 0",
    ),
    (
        "attention text",
        lambda s: s["attention"].update({"encoder.layer.2": "static"}),
        "attention: expected a JSON object, got str",
    ),
    ("tied nowhere", lambda s: s["tied"].update(x="y"), "tied x: expected the name of a stored"),
    ("tied circle", lambda s: s["tied"].update(x="y", y="x"), "tied x: expected the name"),
    ("tied self", lambda s: s["tied"].update(x="x"), "tied x: expected the name"),
    ("tied chain", lambda s: s["tied"].update(x="cls.decoder.weight"), "tied x: expected the name"),
    (
        "tied and stored",
        lambda s: s["tied"].update({"classifier.weight": "embeddings.LayerNorm.weight"}),
        "tied classifier.weight: expected a name that is not stored",
    ),
    ("absent text", lambda s: s.update(absent="a.ffn"), "absent: expected list, got str"),
    ("absent number", lambda s: s.update(absent=[3]), "absent: expected a list of names"),
    ("absent layer", lambda s: s.update(absent=["encoder.layer.3"]), "absent: expected a list"),
    ("absent escape", lambda s: s.update(absent=["../x.ffn"]), "absent: expected a list of names"),
    ("absent twice", lambda s: s.update(absent=["a.ffn", "a.ffn"]), "absent: .* got one twice"),
    ("head size 0", lambda s: s.update(head_size=0), "head_size: expected an integer from 1 or"),
    ("head size true", lambda s: s.update(head_size=True), "head_size: expected an integer from"),
    ("head size text", lambda s: s.update(head_size="64"), "head_size: expected int, got str"),
    ("tied list", lambda s: s["tied"].update(x=["y"]), "expected strings"),
    (
        "tied over a layer",
        lambda s: s["tied"].update({f"{QUERY}.weight": "classifier.weight"}),
        f"layer '{QUERY}' is packed",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in SECTION], ids=[case[0] for case in SECTION]
)
def test_section_that_is_not_as_documented(
    tampered: Any, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    spoil(tampered.section)
    tampered.write()
    refused(tampered.directory, f"config.json: .*{message}")


def test_tensors_that_the_two_files_disagree_about(tampered: Any) -> None:
    spec = tampered.section["layers"].pop(QUERY)
    tampered.write()
    refused(tampered.directory, rf"unknown tensors \['{QUERY}.scales', '{QUERY}.values'\]")
    tampered.section["layers"] |= {QUERY: spec, "encoder.layer.9.query": spec}
    tampered.write()
    refused(tampered.directory, r"missing tensors \['encoder.layer.9.query.scales'")


def test_a_bias_that_is_gone_is_missed(tampered: Any) -> None:
    tampered.header["other"] = tampered.header.pop(f"{QUERY}.bias")
    tampered.write()
    refused(tampered.directory, rf"missing tensors \['{QUERY}.bias'\], unknown tensors \['other'\]")


def test_a_layer_described_in_another_shape(tampered: Any) -> None:
    tampered.section["layers"][QUERY]["shape"] = [10, 6]
    tampered.write()
    refused(tampered.directory, rf"{QUERY}.scales: expected torch.float32 \[10\], got .* \[6\]")
    tampered.section["layers"][QUERY]["shape"] = [6, 20]
    tampered.write()
    refused(tampered.directory, rf"{QUERY}.values: expected torch.int8 \[6, 20\], got .* \[6, 10\]")


HEADER: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("entry", lambda h: h.update({QUERY: []}), f"{QUERY}: expected dtype, shape and data_offsets"),
    ("key", lambda h: h[f"{VALUE}.values"].update(x=1), f"{VALUE}.values: expected dtype, shape"),
    ("dtype", lambda h: h[f"{VALUE}.values"].update(dtype="F8_E4M3"), "expected a dtype of F64"),
    ("dtype type", lambda h: h[f"{VALUE}.values"].update(dtype=["I8"]), "expected a dtype of F64"),
    ("shape", lambda h: h[f"{VALUE}.values"].update(shape=[6, -6]), "expected a shape"),
    ("shape type", lambda h: h[f"{VALUE}.values"].update(shape="6x6"), "expected a shape"),
    ("dimensions", lambda h: h[f"{VALUE}.values"].update(shape=[1] * 99), "at most 8 sizes"),
    (
        "huge",
        lambda h: h[f"{VALUE}.values"].update(shape=[2**40, 2**40]),
        "values: expected 120892",
    ),
    ("bytes", lambda h: h[f"{VALUE}.values"].update(shape=[6, 5]), "expected 30 bytes for I8"),
    ("offsets", lambda h: h[f"{VALUE}.values"].update(data_offsets=[36]), "data_offsets"),
    ("backwards", lambda h: h[f"{VALUE}.values"].update(data_offsets=[36, 0]), "data_offsets"),
    ("fraction", lambda h: h[f"{VALUE}.values"].update(data_offsets=[0, 36.0]), "data_offsets"),
    ("metadata", lambda h: h.update(__metadata__={"format": "np"}), "__metadata__: expected"),
    ("no metadata", lambda h: h.pop("__metadata__"), "__metadata__: expected"),
    ("a tensor less", lambda h: h.pop(f"{VALUE}.values"), r"\(an overlap or a gap\)|bytes of"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), [case[1:] for case in HEADER], ids=[case[0] for case in HEADER]
)
def test_header_that_is_not_sound(
    tampered: Any, spoil: Callable[[dict[str, Any]], object], message: str
) -> None:
    spoil(tampered.header)
    tampered.write()
    refused(tampered.directory, f"model.safetensors: .*{message}")


def test_offsets_that_overlap_leave_gaps_or_run_over(tampered: Any) -> None:
    name = f"{QUERY}.values"
    begin, end = tampered.header[name]["data_offsets"]
    for shift in (-1, 1, 10**6, 2**63):
        tampered.header[name]["data_offsets"] = [begin + shift, end + shift]
        tampered.write()
        refused(tampered.directory, r"model.safetensors: .*\(an overlap or a gap\)")


def test_two_tensors_of_the_same_bytes(tampered: Any) -> None:
    tampered.header["twin"] = tampered.header["classifier.weight"]
    tampered.section["tensors"].append("twin")
    tampered.write()
    refused(tampered.directory, r"model.safetensors: .*\(an overlap or a gap\)")


def test_a_tensor_that_is_not_aligned(tampered: Any) -> None:
    tampered.data = bytearray(b"\0" + bytes(tampered.data))
    for entry in tampered.header.values():
        if "data_offsets" in entry:
            entry["data_offsets"] = [offset + 1 for offset in entry["data_offsets"]]
    tampered.header["pad"] = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    tampered.section["tensors"].append("pad")
    tampered.write()
    refused(tampered.directory, "expected an offset aligned to")


def test_header_lengths_that_lie(tampered: Any) -> None:
    header = json.dumps(tampered.header).encode()
    for length in (0, 1, len(header) - 1, len(header) + 10**5, 2**32, 2**63, 2**64 - 1):
        tampered.write_weights(header, length)
        refused(tampered.directory, "model.safetensors: expected")


def test_a_header_of_many_megabytes(tampered: Any) -> None:
    tampered.write_weights(json.dumps(tampered.header).encode() + b" " * 2**23)
    refused(tampered.directory, "expected a header of at most 8388608 bytes")


def test_a_header_that_names_a_tensor_twice(tampered: Any) -> None:
    header = json.dumps(tampered.header)
    entry = json.dumps({"classifier.weight": tampered.header["classifier.weight"]})
    tampered.write_weights(f"{header[:-1]}, {entry[1:]}".encode())
    refused(tampered.directory, "expected each key once, got 'classifier.weight' twice")


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_truncated_weights(saved: Path, kept: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(saved, "model.safetensors: expected")


def test_weights_with_something_behind(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    refused(saved, r"model.safetensors: expected \d+ bytes of tensors, got \d+")


NAN, INFINITY, ZERO, NEGATIVE = (struct.pack("<f", x) for x in (float("nan"), float("inf"), 0, -1))
CONTENT = [
    *(
        (f"{QUERY}.scales", 4, bad, "finite numbers above 0")
        for bad in (NAN, INFINITY, ZERO, NEGATIVE)
    ),
    *((f"{QUERY}.bias", 8, bad, "expected finite numbers") for bad in (NAN, INFINITY)),
    (f"{KEY}.values", 0, NAN, "expected finite numbers"),
    (f"{KEY}.values", 0, ZERO, "a stored value is 0"),
    # Bits 10 to 15 of a row of 10 inputs.
    (f"{KEY}.bitmask", 1, b"\xfc", "bitmask: a bit behind input 9 is set"),
    # Two of four in 10 inputs: positions of five bytes in three groups of two.
    (f"{VALUE}.positions", 0, b"\xff", "positions: expected ascending positions below 4"),
    (
        "encoder.layer.1.key.positions",
        0,
        b"\xff",
        "positions: expected ascending positions below 6",
    ),
    ("encoder.layer.1.query.bitmask", 0, b"\x00\x00", "expected torch.bfloat16"),
    ("encoder.layer.1.value.bitmask", 0, b"\xf8", "bitmask: a bit behind block column 2"),
]


@pytest.mark.parametrize(("name", "offset", "new", "message"), CONTENT)
def test_content_that_no_packer_writes(
    tampered: Any, name: str, offset: int, new: bytes, message: str
) -> None:
    tampered.put(name, offset, new)
    tampered.write()
    refused(tampered.directory, f"model.safetensors: {name.rpartition('.')[0]}.*{message}")


def test_a_bias_of_another_length_or_type(tampered: Any) -> None:
    name = f"{QUERY}.bias"
    tampered.header[name] |= {"shape": [2, 3]}
    tampered.write()
    refused(tampered.directory, rf"{name}: expected floats \[6\].* got torch.float32 \[2, 3\]")
    tampered.header[name] |= {"shape": [6], "dtype": "I32"}
    tampered.write()
    refused(tampered.directory, rf"{name}: expected floats \[6\].* got torch.int32 \[6\]")


def test_booleans_that_are_neither(tampered: Any) -> None:
    tampered.header["mask"] = {
        "dtype": "BOOL",
        "shape": [2],
        "data_offsets": [len(tampered.data), len(tampered.data) + 2],
    }
    tampered.section["tensors"].append("mask")
    tampered.data += b"\1\0"
    tampered.write()
    assert load(tampered.directory).tensors["mask"].tolist() == [True, False]
    tampered.data[-1] = 2
    tampered.write()
    refused(tampered.directory, "mask: expected bytes 0 and 1 for booleans")


def test_a_stated_size_is_not_allocated(tampered: Any) -> None:
    # 2**31 elements would take 2 to 8 GiB; everything is refused from the header alone.
    for name in tampered.section["layers"]:
        tampered.section["layers"][name]["shape"] = [2**15, 2**16]
    tampered.write()
    refused(tampered.directory, "expected torch")


def test_an_error_is_a_value_error_and_pickles() -> None:
    error = pickle.loads(pickle.dumps(FormatError("config.json: expected x, got y")))
    assert isinstance(error, ValueError)
    assert str(error) == "config.json: expected x, got y"
