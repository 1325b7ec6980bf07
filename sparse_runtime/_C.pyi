"""C++ kernels by address and size. Arrays are row-major; an address comes from data_ptr().

Strides count elements and only matter with more than one row. Every function checks sizes,
alignment and null addresses before it writes anything, and raises ValueError naming the argument;
what it cannot check is that the address really holds that many bytes. The GIL is released while a
kernel runs. `isa` is "auto" (SPARSE_RUNTIME_ISA, or the best) or a name from isas(); one that
cannot run here raises RuntimeError with the reason. `num_threads` is at least 1; at most 256 are
used. Layouts of activations and weights: docs/kernels.
"""

from typing import TypedDict, overload

class IsaStatus(TypedDict):
    name: str
    built: bool
    available: bool
    reason: str  # why not available; "" when it is

class BuildInfo(TypedDict):
    compiler: str
    cxx_standard: int
    isas: list[str]  # built
    isas_not_built: dict[str, str]  # name -> reason
    families: dict[str, list[str]]  # kernel family -> instruction sets built

def cpu_features() -> dict[str, bool]:
    """Instruction sets that both the CPU and the operating system support."""

def isas() -> list[IsaStatus]:
    """Every instruction set that kernels are written for, in ascending preference."""

def build_info() -> BuildInfo: ...
def max_threads() -> int:
    """CPUs this process may run on, at least 1."""

def use_openmp(gomp_parallel_ptr: int) -> None:
    """Run loops on the OpenMP runtime that has this GOMP_parallel; 0: on the extension's pool."""

class WorkspacePool:
    """Memory for activations, kept between passes; safe to share between threads."""

    def __init__(self) -> None: ...
    @property
    def bytes(self) -> int: ...

class Int8PanelWeight:
    """An int8 weight [n, k] in a device layout."""

    n: int
    k: int
    @property
    def layout(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def reads_plain(self) -> bool:
        """Whether activations come as plain panels; else grouped."""
    def unpack(self, w_ptr: int) -> None: ...

class FloatPanelWeight:
    """A float weight [n, k] in a device layout."""

    n: int
    k: int
    @property
    def layout(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def reads_pairs(self) -> bool:
        """Whether activations come as bf16 pairs; else as floats."""
    def unpack(self, w_ptr: int) -> None: ...

PANEL_MAX_K: int
PANEL_MAX_K_ZERO_POINTS: int

def int8_panels_pack(w_ptr: int, n: int, k: int, layout: str) -> Int8PanelWeight: ...
def int8_panels_count(w_ptr: int, n: int, k: int) -> dict[str, int]:
    """Units that each layout would multiply, and "nonzeros"."""

def int8_panels_runs(layout: str, isa: str = "auto") -> bool: ...
def int8_panels_seconds(
    weight: Int8PanelWeight, panels: int, last_vectors: int, repeats: int, isa: str = "auto"
) -> float:
    """The shortest of several products with made-up activations, one thread."""

def int8_panels_accumulate(
    weight: Int8PanelWeight,
    row: int,
    rows: int,
    x_ptr: int,
    panel_stride: int,
    panels: int,
    last_vectors: int,
    acc_ptr: int,
    isa: str,
) -> None:
    """int32 [panels, rows, 64]: the products of some rows, exact modulo 2**32."""

def float_panels_pack(w_ptr: int, n: int, k: int, layout: str) -> FloatPanelWeight: ...
def float_panels_count(w_ptr: int, n: int, k: int) -> dict[str, int]:
    """Units that "dense32" and "sparse32" would multiply."""

def float_panels_runs(layout: str, isa: str = "auto") -> bool: ...
def float_panels_seconds(
    weight: FloatPanelWeight, panels: int, last_vectors: int, repeats: int, isa: str = "auto"
) -> float: ...
def float_panels_accumulate(
    weight: FloatPanelWeight,
    row: int,
    rows: int,
    x_ptr: int,
    panel_stride: int,
    panels: int,
    last_vectors: int,
    acc_ptr: int,
    isa: str,
) -> None: ...
def peaks(isa: str = "auto") -> dict[str, float]:
    """Operations a second of the product instructions on one thread, each in a loop by itself.

    "int8", "fp32" and "bf16" of the vector unit, "int8_tiles" and "bf16_tiles" of the matrix unit
    where the set has one. A multiplication and an addition are two operations.
    """

def panel_attention_runs(form: str, isa: str = "auto") -> bool: ...
def panel_attention(
    form: str,
    qkv_ptr: int,
    tokens: int,
    heads: int,
    head_size: int,
    scale: float,
    bias_ptr: int,
    span: int,
    out_ptr: int,
    head: int,
    start: int,
    length: int,
    bias_start: int,
    query: int,
    queries: int,
    isa: str,
    quantizers: AttentionQuantizers | None = None,
    filled: int = 64,
) -> None:
    """One head of one sequence; filled: slots of a panel that hold tokens."""

class AttentionQuantizers:
    """Static quantizers of attention's products, each (scale, zero point, low, high)."""

    def __init__(
        self,
        query: tuple[float, int, int, int],
        key: tuple[float, int, int, int],
        probabilities: tuple[float, int, int, int],
        value: tuple[float, int, int, int],
        scores: tuple[float, int, int, int] | None,
        context: tuple[float, int, int, int] | None,
    ) -> None: ...

ATTENTION_MAX_INT8_TERMS: int

class PanelNorm:
    def __init__(self, weight_ptr: int, bias_ptr: int, features: int, eps: float | None) -> None:
        """LayerNorm; without eps ``x * weight + bias`` alone."""

class PanelLinear:
    """A layer in one or several device layouts, each up to a number of tokens."""

    @overload
    def __init__(
        self,
        name: str,
        variants: list[tuple[int, Int8PanelWeight]],
        scale_ptr: int,
        bias_ptr: int,
        scheme: str,
        scale: float = 1.0,
        zero_point: int = 0,
        outputs_ptr: int = 0,
        zero_points_ptr: int = 0,
    ) -> None: ...
    @overload
    def __init__(
        self, name: str, variants: list[tuple[int, FloatPanelWeight]], bias_ptr: int
    ) -> None: ...
    @property
    def bytes(self) -> int: ...
    def apply(
        self,
        x_ptr: int,
        x_stride: int,
        tokens: int,
        activation: str,
        residual_ptr: int,
        residual_stride: int,
        out_ptr: int,
        out_stride: int,
        num_threads: int,
        isa: str,
        pool: WorkspacePool,
    ) -> None:
        """The layer on row-major floats."""

class PanelValue:
    """A recorded value; released when it is dropped."""

    @property
    def features(self) -> int: ...

class Forward:
    """One forward pass: operations are recorded, and run together by run()."""

    def __init__(
        self,
        lengths: list[int],
        positions: list[int],
        num_threads: int,
        isa: str,
        pool: WorkspacePool,
        far_cores: bool = False,
    ) -> None: ...
    def embed(
        self,
        table_ptrs: list[int],
        table_rows: list[int],
        id_ptrs: list[int],
        features: int,
        norm: PanelNorm | None,
    ) -> PanelValue: ...
    def from_rows(
        self, rows_ptr: int, stride: int, features: int, norm: PanelNorm | None
    ) -> PanelValue: ...
    def linear(
        self,
        x: PanelValue,
        layer: PanelLinear,
        activation: str,
        residual: PanelValue | None,
        norm: PanelNorm | None,
    ) -> PanelValue: ...
    def attention(
        self,
        qkv: PanelValue,
        heads: int,
        scale: float,
        bias_ptr: int = 0,
        span: int = 0,
        quantizers: AttentionQuantizers | None = None,
    ) -> PanelValue: ...
    def to_rows(self, x: PanelValue, rows_ptr: int, stride: int) -> None: ...
    def recording(self, x: PanelValue) -> Recording | None:
        """What leads from one embed() to x; None where it cannot be run again."""

    def run(self, profile: bool = False) -> list[tuple[str, float]]:
        """Runs what is recorded; with profile, each stage's label and seconds."""

class Recording:
    """The operations of a pass, to be run over other tokens."""

    @property
    def features(self) -> int: ...
    def run(
        self,
        lengths: list[int],
        id_ptrs: list[int],
        rows_ptr: int,
        stride: int,
        num_threads: int,
        isa: str,
        pool: WorkspacePool,
        profile: bool = False,
        far_cores: bool = False,
    ) -> list[tuple[str, float]]:
        """Runs them; with profile, each stage's label and seconds."""
