"""The variable that says how far cores are from each other."""

from __future__ import annotations

import pytest

from sparse_runtime.ops import cpu_backend


@pytest.fixture(autouse=True)
def _said_anew():
    cpu_backend._far_cores.cache_clear()
    yield
    cpu_backend._far_cores.cache_clear()


@pytest.mark.parametrize(("said", "far"), [("0", False), ("1", True)])
def test_the_variable_decides(monkeypatch, said: str, far: bool) -> None:
    monkeypatch.setenv(cpu_backend.FAR_CORES_VARIABLE, said)
    assert cpu_backend._far_cores() is far


@pytest.mark.parametrize("hypervisor", [False, True])
def test_else_it_is_a_virtual_machine_s(monkeypatch, hypervisor: bool) -> None:
    class Extension:
        @staticmethod
        def cpu_features() -> dict[str, bool]:
            return {"hypervisor": hypervisor}

    monkeypatch.delenv(cpu_backend.FAR_CORES_VARIABLE, raising=False)
    monkeypatch.setattr(cpu_backend, "extension", Extension)
    assert cpu_backend._far_cores() is hypervisor


def test_other_values_are_refused(monkeypatch) -> None:
    monkeypatch.setenv(cpu_backend.FAR_CORES_VARIABLE, "far")
    with pytest.raises(ValueError, match="SPARSE_RUNTIME_FAR_CORES: expected 0 or 1, got 'far'"):
        cpu_backend._far_cores()
