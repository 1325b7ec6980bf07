"""Which modules ``targets`` and ``ignore`` mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...errors import CheckpointError
from ...naming import kind_of
from .patterns import MAX_STATES, Pattern
from .schemes import Quantization, Scheme

_PREFIX = "re:"


@dataclass(frozen=True)
class Targets:
    """Names, patterns and classes of modules.

    Attributes:
        exact: names of modules and of classes.
        patterns: what follows ``re:``, compiled.
    """

    exact: frozenset[str]
    patterns: Mapping[str, Pattern]

    @classmethod
    def of(cls, words: Iterable[str], where: str) -> Targets:
        """Read ``targets`` or ``ignore``.

        Raises:
            CheckpointError: a pattern that is not taken (:class:`Pattern`).
        """
        words = list(words)
        patterns: dict[str, Pattern] = {}
        states = 0
        for word in words:
            if word.startswith(_PREFIX):
                try:
                    patterns[word] = Pattern(word.removeprefix(_PREFIX))
                except ValueError as error:
                    raise CheckpointError(
                        f"{where}: the pattern {word!r} cannot be read: {error}; write the "
                        "modules' names instead"
                    ) from error
                # Each is bounded by itself, and a stranger's list may be long.
                states += patterns[word].size
                if states > MAX_STATES:
                    raise CheckpointError(
                        f"{where}: expected patterns of at most {MAX_STATES} states together, "
                        "about one for each character, got more; write the modules' names instead"
                    )
        return cls(frozenset(words) - patterns.keys(), patterns)

    def matched(self, module: str, kind: str) -> list[str]:
        """Words that mean a module: its name first, then patterns, then its class.

        Args:
            module: its name.
            kind: its class as far as the file shows it: "Linear" or "Embedding".
        """
        found = [module] if module in self.exact else []
        found += sorted(word for word, it in self.patterns.items() if it.matches(module))
        return found + ([kind] if kind in self.exact else [])


def is_embedding(module: str) -> bool:
    """Whether a module with a matrix is a table that is looked up, by its name."""
    return kind_of(f"{module}.weight", ()) == "embedding"


class SchemeFinder:
    """The scheme of each module: as in the package, the most specific target, and ignore wins."""

    def __init__(self, quantization: Quantization) -> None:
        self._schemes: dict[str, Scheme] = {}
        for scheme in quantization.schemes:
            self._schemes |= dict.fromkeys(scheme.targets, scheme)
        self._targets = Targets.of(self._schemes, "quantization_config.config_groups.targets")
        self._ignore = Targets.of(quantization.ignore, "quantization_config.ignore")

    def scheme_of(self, module: str) -> Scheme | None:
        """The scheme of a module with a matrix; None leaves it alone."""
        kind = "Embedding" if is_embedding(module) else "Linear"
        if self._ignore.matched(module, kind):
            return None
        matched = self._targets.matched(module, kind)
        return self._schemes[matched[0]] if matched else None
