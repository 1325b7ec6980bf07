"""Registration with transformers: when it happens, and that the import system is left as it was."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparse_runtime.integrations import hook

OPEN = """
model = AutoModel.from_pretrained(sys.argv[1])
assert type(model.encoder.layer[0].output.dense) is sr.Linear, model
assert not any(type(finder).__module__.startswith("sparse_runtime") for finder in sys.meta_path)
loader = sys.modules["transformers.quantizers"].__spec__.loader
assert type(loader).__name__ == "SourceFileLoader", loader
"""

KNOWN = """
assert "sparse_runtime" in sys.modules["transformers.quantizers.auto"].AUTO_QUANTIZER_MAPPING
"""


def run_program(program: str, root: Path, *arguments: Any) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", f"import sys\n{program}"]
    done = subprocess.run(
        [*command, *map(str, arguments)], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_no_transformers(checkout_root: Path) -> None:
    run_program(
        "import sparse_runtime\n"
        "import importlib.util\n"
        "assert not {'transformers', 'torch'} & set(sys.modules)\n"
        "import transformers\n"
        "assert 'sparse_runtime.layers' not in sys.modules, 'a tokenizer needs none of it'\n",
        checkout_root,
    )


@pytest.mark.parametrize(
    "imports",
    [
        "import sparse_runtime as sr\nfrom transformers import AutoModel",
        "from transformers import AutoModel, BertModel\nimport sparse_runtime as sr",
    ],
    ids=["ours first", "theirs first"],
)
def test_a_directory_opens_in_both_orders(
    imports: str, make_packed: Any, checkout_root: Path
) -> None:
    run_program(f"{imports}\n{OPEN}", checkout_root, make_packed())


@pytest.mark.parametrize(
    "imports",
    [
        # The quantizers are not there yet, and only looked up at first.
        "import transformers, sparse_runtime, importlib.util\n"
        "assert importlib.util.find_spec('transformers.quantizers').origin.endswith('.py')\n"
        "import transformers.quantizers",
        # By another module of theirs, and without the model classes.
        "import sparse_runtime\nfrom transformers.quantizers.auto import AutoHfQuantizer",
        "import sparse_runtime.integrations.transformers",
    ],
    ids=["transformers first", "submodule", "documented line"],
)
def test_the_quantizers_know_the_method(imports: str, checkout_root: Path) -> None:
    run_program(f"{imports}\n{KNOWN}", checkout_root)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The hook on a toy module in the place of transformers' quantizers."""
    (tmp_path / "toy_trigger.py").write_text("import sys\nvalue = 1\n")
    (tmp_path / "toy_integration.py").write_text("import toy_trigger\nseen = toy_trigger.value\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(hook, "TRIGGER", "toy_trigger")
    monkeypatch.setattr(hook, "INTEGRATION", "toy_integration")
    yield tmp_path
    for name in ("toy_trigger", "toy_integration"):
        sys.modules.pop(name, None)


def test_the_hook_runs_once_and_goes(toy: Path) -> None:
    before = list(sys.meta_path)
    hook.install()
    hook.install()
    assert len(sys.meta_path) == len(before) + 1
    import toy_trigger  # type: ignore[import-not-found]

    assert sys.modules["toy_integration"].seen == 1
    assert sys.meta_path == before
    assert toy_trigger.__loader__ is toy_trigger.__spec__.loader
    assert type(toy_trigger.__loader__).__name__ == "SourceFileLoader"


def test_a_failed_import_is_tried_again(toy: Path) -> None:
    source = (toy / "toy_trigger.py").read_text()
    (toy / "toy_trigger.py").write_text("raise ImportError('not today')\n")
    hook.install()
    with pytest.raises(ImportError, match="not today"):
        import toy_trigger
    assert "toy_integration" not in sys.modules
    (toy / "toy_trigger.py").write_text(source + "# longer, so that no cache is taken for it\n")
    import toy_trigger

    assert "toy_integration" in sys.modules and toy_trigger.value == 1


def test_an_integration_that_fails_only_warns(toy: Path) -> None:
    (toy / "toy_integration.py").write_text("raise ImportError('too old')\n")
    hook.install()
    with pytest.warns(RuntimeWarning, match=r"could not register with transformers \(too old\)"):
        import toy_trigger
    assert toy_trigger.value == 1


def test_a_trigger_that_is_there_already(toy: Path) -> None:
    import toy_trigger  # noqa: F401

    before = list(sys.meta_path)
    hook.install()
    assert "toy_integration" in sys.modules and sys.meta_path == before


def test_without_transformers_nothing_happens(toy: Path) -> None:
    (toy / "toy_trigger.py").unlink()
    hook.install()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModuleNotFoundError, match="toy_trigger"):
            import toy_trigger  # noqa: F401
