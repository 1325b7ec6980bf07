"""How a verification's report looks in a terminal."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from .report import Check, VerifyReport


def as_tables(report: VerifyReport) -> Group:
    """Measured values with their limits, drift layer by layer, and the verdict."""
    heading = Text(
        f"{report.packed} against {report.source}: {report.task}, backend {report.backend} on "
        f"{report.device}, {report.texts} texts, {report.tokens} tokens, {report.seconds:.1f} s"
    )
    return Group(heading, _values(report), _layers(report), *_verdict(report))


def _values(report: VerifyReport) -> Table:
    table = Table(title="Fidelity", title_justify="left")
    table.add_column("value")
    table.add_column("measured", justify="right")
    table.add_column("limit", justify="right")
    table.add_column("")
    checks = {check.name: check for check in report.checks}

    def row(name: str, value: str, check: str | None = None) -> None:
        limit = checks.get(check) if check else None
        table.add_row(Text(name), value, _limit(limit, percent="%" in value), _mark(limit))

    row("cosine of embeddings, mean", f"{report.cosine.mean:.6f}", "min_cosine")
    row("cosine of embeddings, 5th percentile", f"{report.cosine.p5:.6f}")
    row("cosine of embeddings, smallest", f"{report.cosine.minimum:.6f}", "min_text_cosine")
    row(f"{report.output.name}, largest drift", f"{report.output.max_abs:.4g}")
    name = f"{report.output.name}, relative drift"
    row(name, f"{report.output.relative:.3%}", "max_relative_drift")
    if report.agreement is not None:
        agreement = report.agreement
        value = f"{agreement.share:.2%} of {agreement.total}"
        row(f"equal predictions: {agreement.what}", value, "min_agreement")
    if report.spearman is not None:
        spearman = report.spearman
        row(f"Spearman over {spearman.pairs} pairs, original", f"{spearman.original:.4f}")
        row("Spearman, packed", f"{spearman.packed:.4f}")
        row("Spearman, drop", f"{spearman.drop:+.4f}", "max_spearman_drop")
    if report.implementation is not None:
        found = report.implementation
        name = f"kernels alone, {found.backend} against {found.reference}"
        value = f"{found.first_layer.relative:.3%}"
        row(f"{name}, after the first layer", value, "max_implementation_error")
        row(f"{name}, {found.output.name}", f"{found.output.relative:.3%}")
        row(f"{name}, {found.output.name}, largest", f"{found.output.max_abs:.4g}")
    return table


def _layers(report: VerifyReport) -> Table:
    table = Table(title="Drift of the hidden states", title_justify="left")
    table.add_column("after")
    table.add_column("relative", justify="right")
    table.add_column("largest", justify="right")
    for layer in report.layers:
        table.add_row(layer.name, f"{layer.relative:.3%}", f"{layer.max_abs:.4g}")
    return table


def _verdict(report: VerifyReport) -> list[Text]:
    if report.passed:
        return [Text("passed", style="bold green")]
    lines = [Text("failed", style="bold red")]
    return lines + [Text(f"  {failure}") for failure in report.failures]


def _limit(check: Check | None, *, percent: bool) -> str:
    """A limit in the unit of what it limits."""
    if check is None:
        return ""
    sign = "≥" if check.name.startswith("min_") else "≤"
    return f"{sign} {100 * check.limit:g}%" if percent else f"{sign} {check.limit:g}"


def _mark(check: Check | None) -> Text:
    if check is None:
        return Text("")
    return Text("ok", style="green") if check.passed else Text("failed", style="bold red")
