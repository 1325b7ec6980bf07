"""docs/formats against the code: examples to the byte, and every documented error exists."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparse_runtime.formats import from_tensors, pack
from sparse_runtime.spec import LinearSpec, QuantizedAttention
from sparse_runtime.store import PackedLinear, PackedModel, load, save

PAGES = ("README", "dense", "unstructured", "nm", "block", "store")


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, checkout_root: Path) -> str:
    return read(checkout_root, request.param)


def read(root: Path, page: str) -> str:
    return (root / "docs" / "formats" / f"{page}.md").read_text(encoding="utf-8")


def blocks(text: str, kind: str) -> list[Any]:
    return [json.loads(block) for block in re.findall(rf"```json {kind}\n(.*?)```", text, re.S)]


def tensor_from(text: str, like: Tensor) -> Tensor:
    raw = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
    return raw.view(like.dtype).view(like.shape)


@pytest.mark.parametrize(
    ("name", "count"), [("dense", 2), ("unstructured", 1), ("nm", 2), ("block", 1)]
)
def test_examples_are_right_to_the_byte(checkout_root: Path, name: str, count: int) -> None:
    examples = blocks(read(checkout_root, name), "example")
    assert len(examples) == count
    for example in examples:
        spec = LinearSpec.from_dict(example["spec"])
        weight = torch.tensor(example["weight"]).to(spec.values.torch_dtype)
        stated = example["tensors"]
        scales = None
        if "scales" in stated:
            scales = tensor_from(stated["scales"], torch.ones(spec.scale_count))
        zero_points = None
        if "zero_points" in stated:
            like = torch.ones(spec.scale_count, dtype=torch.int8)
            zero_points = tensor_from(stated["zero_points"], like)
        packed = pack(weight, spec, scales, zero_points)
        assert packed.tensors().keys() == stated.keys()
        for part, tensor in packed.tensors().items():
            assert tensor.view(torch.uint8).flatten().tolist() == list(bytes.fromhex(stated[part]))
        read_back = {part: tensor_from(stated[part], t) for part, t in packed.tensors().items()}
        assert torch.equal(from_tensors(spec, read_back).unpack(), weight)


def test_the_configuration_in_the_document_is_what_is_written(
    checkout_root: Path, tmp_path: Path
) -> None:
    (config,) = blocks(read(checkout_root, "store"), "config")
    section = config["sparse_runtime"]
    ((name, entry),) = section["layers"].items()
    spec = LinearSpec.from_dict(entry)
    packed = pack(torch.zeros(spec.shape, dtype=torch.int8), spec, torch.ones(2))
    model = PackedModel(
        config={"model_type": config["model_type"]},
        linears={name: PackedLinear(packed, torch.zeros(2))},
        tensors={"embeddings.word_embeddings.weight": torch.ones(3, 6)},
        aliases=section["tied"],
        provenance=section["provenance"],
        attention={k: QuantizedAttention.from_dict(v) for k, v in section["attention"].items()},
        absent=tuple(section["absent"]),
        head_size=section["head_size"],
    )
    save(model, tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text()) == config
    assert load(tmp_path / "model").attention == model.attention


def messages(root: Path) -> str:
    """The literal text of all strings of the rooms that the documents describe."""
    package = root / "sparse_runtime"
    files = [*package.glob("spec/*.py"), *package.glob("formats/*.py"), *package.glob("store/*.py")]
    found = []
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "\0" for p in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\0\0".join(found)


def test_every_documented_error_exists(page: str, checkout_root: Path) -> None:
    tables = re.findall(r"\| MUST \| or else \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(tables) == page.count("| MUST |")
    raised = messages(checkout_root)
    for row in rows:
        error = row.rstrip("| ").rpartition(" | ")[2].strip()
        if error == "see the format":
            continue
        match = re.fullmatch("`(.+)`", error)
        assert match, row
        assert match[1] in raised, row


def test_links_between_the_pages_lead_somewhere(page: str, checkout_root: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page):
        if not target.startswith("https://"):
            assert (checkout_root / "docs" / "formats" / target).is_file()
