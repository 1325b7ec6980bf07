"""benchmarks/gpu_check.sh with an interpreter that only notes what it is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

# Neither builds the extension nor passes a test; everything else succeeds. Asked what device and
# commit these are, it answers what the test says.
INTERPRETER = """#!/bin/sh
echo "$*" >> "$LOG"
case "$*" in
  *get_device_name*) echo "$KEY";;
  *setup.py*) exit 1;;
  *'-m pytest'*) eval "${TEST:-}"; exit "${TESTS_END:-3}";;
esac
"""
DRIVERS = {
    "3": "gpu.tune",
    "4": "gpu.linears",
    "5": "gpu.encoders",
    "7": "gpu.gemms",
    "8": "gpu.gemms",
    "9": "gpu.gemms",
    "10": "gpu.gemms",
    "11": "gpu.gemms",
    "12": "gpu.gemms",
    "13": "gpu.rows",
}


def check(root: Path, folder: Path, *options: str, **given: str) -> tuple[int, list[str], str]:
    """Exit status, what the interpreter was asked for, and what was said."""
    python, log = folder / "python", folder / "log"
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    log.write_text("")
    own = {"PYTHON": str(python), "OUT": str(folder / "out"), "LOG": str(log)}
    own |= {"KEY": "Some GPU 0123abc", "XDG_CACHE_HOME": str(folder / "cache"), **given}
    # As in the background of another script.
    command = ["bash", "-c", "trap '' INT; exec bash \"$@\"", "bash"]
    command += [str(root / "benchmarks/gpu_check.sh"), *options]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    return done.returncode, log.read_text().splitlines(), done.stdout + done.stderr


def kinds_asked(asked: list[str]) -> list[str]:
    """Of which hand-written kernels a short test was run, in order."""
    words = [line.partition("-k small_products and ")[2] for line in asked if "-m pytest" in line]
    return [rest.split()[0] for rest in words if rest]


def test_the_tests_run_though_the_extension_does_not_build(
    checkout_root: Path, tmp_path: Path
) -> None:
    status, asked, said = check(checkout_root, tmp_path, "--part", "1", WORKERS="5")
    assert status == 1 and "the C++ extension is not built" in said
    together, alone = (line for line in asked if "-m pytest" in line)
    assert "-m not alone -n 5" in together and together.count(".py") > 8
    assert alone.endswith("-m alone")
    steps = [line.partition(" --out")[0] for line in asked if "gpu.step" in line]
    assert [line.partition("step ")[2] for line in steps] == [
        "tests --exit-status 3",
        "tests alone --exit-status 3",
    ]
    assert not any("gpu.tune" in line for line in asked)


def test_the_sanitizer_runs_each_tool(checkout_root: Path, tmp_path: Path) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "$0 $*" >> "$LOG"\nexit 9\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    status, asked, _ = check(checkout_root, tmp_path, "--part", "2", BUILD="0", PATH=path)
    ran = [line for line in asked if "compute-sanitizer --tool" in line]
    assert status == 1 and len(ran) == 4
    for line, kind in zip(ran, ("not hopper", "not hopper", "hopper", "hopper"), strict=True):
        assert f"-m sanitize -k {kind}" in line
    for memory, race in (ran[:2], ran[2:]):
        assert "memcheck --report-api-errors no --error-exitcode 9" in memory
        assert "racecheck --racecheck-detect-level error --error-exitcode 9" in race
    steps = [line.partition(" --out")[0] for line in asked if "gpu.step" in line]
    names = ("memcheck", "racecheck", "memcheck hopper", "racecheck hopper")
    assert [line.partition("step ")[2] for line in steps] == [
        f"{name} --exit-status 9" for name in names
    ]


def test_a_step_without_time_is_interrupted_and_all_is_logged(
    checkout_root: Path, tmp_path: Path
) -> None:
    # In the place of coreutils' own: every step's time is over at once.
    program = tmp_path / "timeout"
    program.write_text(f'#!/bin/sh\nshift 5\nexec {shutil.which("timeout")} -s INT -k 9 1 "$@"\n')
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    given = {
        "BUILD": "0",
        "PATH": path,
        "TEST": "trap 'echo two failed; exit 2' INT; sleep 9 & wait",
    }
    status, asked, said = check(checkout_root, tmp_path, "--part", "1", **given)
    assert status == 1 and said.count("two failed") == 2
    steps = [line.partition(" --out")[0] for line in asked if "gpu.step" in line]
    assert [line.partition("step ")[2] for line in steps] == [
        "tests --exit-status 124",
        "tests alone --exit-status 124",
    ]
    assert (tmp_path / "out" / "log").read_text() == said


@pytest.mark.parametrize("part", DRIVERS)
def test_each_part_runs_its_driver_and_the_table_shows_results(
    part: str, checkout_root: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "gpu.jsonl").write_text('{"kind": "gpu_linear"}\n')
    (tmp_path / "out" / "cpu.jsonl").write_text('{"kind": "linear"}\n')
    status, asked, said = check(checkout_root, tmp_path, "--part", part, BUILD="0")
    assert status == 0 and not any("setup.py" in line for line in asked)
    # Kernels whose short test fails take no part, and are not asked again.
    assert kinds_asked(asked) == ["mma", "hopper"]
    assert "left out: mma,hopper kernels" in said
    _, again, said = check(checkout_root, tmp_path, "--part", part, BUILD="0")
    assert "left out: mma,hopper kernels" in said
    assert not any("-m pytest" in line for line in again)
    ran = [line for line in asked if line.startswith("-m sparse_runtime")]
    assert [DRIVERS[part] in line for line in ran] == [True, False, False]
    assert "gpu.step" in ran[1] and "gpu.view" in ran[2] and ran[2].endswith("out/gpu.jsonl")


def test_what_is_left_out_holds_for_one_device_and_commit(
    checkout_root: Path, tmp_path: Path
) -> None:
    def asked_for(key: str, **given: str) -> tuple[list[str], bool]:
        _, asked, said = check(checkout_root, tmp_path, "--part", "4", BUILD="0", KEY=key, **given)
        return kinds_asked(asked), "left out" in said

    both = ["mma", "hopper"]
    assert asked_for("Some GPU 0123abc") == (both, True)
    assert asked_for("Some GPU 0123abc") == ([], True)
    # A kernel that is mended, and another device, are asked for by themselves.
    assert asked_for("Some GPU 4567def", TESTS_END="0") == (both, False)
    assert asked_for("Other GPU 0123abc", TESTS_END="0") == (both, False)
    assert asked_for("Other GPU 0123abc") == ([], False)
    # A copied tree without history, which a hash names.
    assert [asked_for("Some GPU sources-89ab") for _ in range(2)] == [(both, True), ([], True)]
    # Another library.
    assert asked_for("Some GPU 0123abc NVRTC 13.0") == (both, True)


def test_where_no_test_is_collected_no_kernel_has_failed(
    checkout_root: Path, tmp_path: Path
) -> None:
    _, asked, said = check(checkout_root, tmp_path, "--part", "4", BUILD="0", TESTS_END="5")
    assert kinds_asked(asked) == ["mma", "hopper"] and "left out" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("foo",), "expected --part or --again, got foo"),
        (("--part",), "--part takes 1 to 13, got nothing"),
        (("--part", "0"), "--part takes 1 to 13, got 0"),
        (("--part", "14"), "--part takes 1 to 13, got 14"),
        (("--part", "4x"), "--part takes 1 to 13, got 4x"),
    ],
)
def test_other_arguments_are_refused_before_anything_runs(
    options: tuple[str, ...], message: str, checkout_root: Path, tmp_path: Path
) -> None:
    status, asked, said = check(checkout_root, tmp_path, *options)
    assert status == 2 and f"error: {message}\n" in said and "--part N" in said
    assert not asked and not (tmp_path / "out").exists()


def test_help_is_the_head_of_the_file(checkout_root: Path, tmp_path: Path) -> None:
    status, asked, said = check(checkout_root, tmp_path, "--help")
    assert status == 0 and not asked
    assert said.startswith("Everything") and "SPARSE_RUNTIME_COMMIT" in said and "set -" not in said


@pytest.mark.parametrize("part", DRIVERS)
def test_a_driver_is_told_to_run_known_cases_again(
    part: str, checkout_root: Path, tmp_path: Path
) -> None:
    for options in ((), ("--again",)):
        _, asked, _ = check(checkout_root, tmp_path, "--part", part, *options, BUILD="0")
        (line,) = (line for line in asked if DRIVERS[part] in line)
        assert ("--again" in line.split()) == bool(options)


def test_without_the_sanitizer_its_part_is_kept_as_skipped(
    checkout_root: Path, tmp_path: Path
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "cat", "dirname", "env", "grep", "mkdir", "rm", "sed", "sh", "tee"):
        (commands / name).symlink_to(shutil.which(name) or name)
    status, asked, _ = check(checkout_root, tmp_path, "--part", "2", BUILD="0", PATH=str(commands))
    (line,) = (line for line in asked if "gpu.step" in line)
    assert "step sanitizer --skipped compute-sanitizer is not on PATH --out" in line
    assert status == 0 and not any("-m pytest" in line for line in asked)


def clock(folder: Path, build: int, test: int) -> dict[str, str]:
    """A build and a short test of kernels that take so long: SECONDS goes on without waiting."""
    # ``timeout`` runs in the script's own shell as a function, which may set its clock; the other
    # programs stand behind it.
    functions = folder / "functions"
    functions.write_text(f"""
timeout() {{
  case "$*" in
    *setup.py*) SECONDS=$((SECONDS + {build}));;
    *small_products*) SECONDS=$((SECONDS + {test}));;
    "-s INT"*) echo "limit $5" >> "$LOG"; SECONDS=$((SECONDS + $5 + 20)); shift 5; "$@";;
  esac
}}
""")
    return {"BASH_ENV": str(functions)}


@pytest.mark.parametrize(
    ("part", "build", "test", "limits", "seconds"),
    [
        ("4", 0, 0, [540], ["500"]),
        ("4", 0, 90, [380], ["340"]),
        ("3", 300, 45, [170], ["100"]),
        ("5", 300, 90, [], []),  # 80 s, of which its last 90 begin no case
        ("1", 300, 0, [260], []),
    ],
)
def test_the_steps_of_a_part_end_within_its_ten_minutes(
    part: str,
    build: int,
    test: int,
    limits: list[int],
    seconds: list[str],
    checkout_root: Path,
    tmp_path: Path,
) -> None:
    given = clock(tmp_path, build, test)
    status, asked, _ = check(checkout_root, tmp_path, "--part", part, **given)
    found = [int(line.split()[1]) for line in asked if line.startswith("limit")]
    # What the script itself takes may be a second or two.
    assert len(found) == len(limits)
    assert all(0 <= most - one <= 5 for one, most in zip(found, limits, strict=True))
    told = [line.partition("--seconds ")[2].split()[0] for line in asked if "--seconds" in line]
    assert [0 <= int(most) - int(one) <= 5 for one, most in zip(told, seconds, strict=True)] == [
        True
    ] * len(seconds)
    skipped = [line for line in asked if "gpu.step" in line and "--skipped" in line]
    assert bool(skipped) == (part in "15") and (status == 1) == bool(skipped)
    assert all("no room left" in line and "BUILD=0" in line for line in skipped)


def test_of_all_parts_each_has_ten_minutes(checkout_root: Path, tmp_path: Path) -> None:
    given = clock(tmp_path, 300, 90)
    _, asked, _ = check(checkout_root, tmp_path, **given)
    found = [int(line.split()[1]) for line in asked if line.startswith("limit")]
    assert found[0] == 400 and found.count(540) == len(DRIVERS)
