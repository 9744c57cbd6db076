"""The page says what its inputs say, no less, and never reads well over a failure: `python3 -m unittest discover -s scripts`."""

import contextlib
import copy
import io
import json
import re
import sys
import tempfile
import unittest
import xml.etree.ElementTree
from pathlib import Path
from unittest import mock

import figures
import figures_inputs

JUDGE = Path(__file__).resolve().parents[1] / "golden" / "src" / "judge.rs"
TRIALS = "\ntest result: ok. {} passed; {} failed; {} ignored; 0 measured; {} filtered out; finished in 1.00s\n"
SEVEN = "".join(f"test gelu/case_{i} cuda-f32   ... ok\n" for i in range(7)) + TRIALS.format(7, 0, 0, 3)
CLEAN = {
    "memcheck": "LEAK SUMMARY: 0 bytes leaked in 0 allocations\n========= ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
    "initcheck": "ERROR SUMMARY: 0 errors",
    "synccheck": "ERROR SUMMARY: 0 errors",
}
QUIET = {"ledger": "", "driver_bytes": 0, "nvml_bytes": 0, "host_bytes": 0, "host_blocks": 0}


def output(case: str, backend: str, name: str, ratio: float | None, **others: object) -> dict:
    row = {
        "case": case, "backend": backend, "mode": "", "output": name, "dtype": "f32", "rule": "gate", "ratio": ratio,
        "worst_channel": {"index": 3, "ratio": 1.75}, "max_ratio": 1.5, "worst": None, "nmse": 0.0, "near_ties": [], "passed": True,
        "reason": None,
    }  # fmt: skip
    return row | others


def scenario(name: str, verdict: str, figures_of: dict | None) -> dict:
    return {"scenario": name, "backend": "cuda-f32", "iterations": 100, "figures": figures_of, "verdict": verdict}


def timing(system: str, median: float, **others: object) -> dict:
    row = {"measure": "decode", "at": "200 tokens", "system": system, "unit": "us a token", "median": median, "p90": median * 1.25}
    return row | ({} if system == "touchstone" else {"times_ours": median / 20.0}) | others


class Figures(unittest.TestCase):
    """A folder of inputs that a test changes, then renders."""

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder, self.out = Path(temporary.name) / "in", Path(temporary.name) / "out"
        self.folder.mkdir()
        self.functional = [
            output("gelu/a", "cuda-f32", "y", 0.5),
            output("gelu/b", "cuda-f32", "y", 0.75),
            output("gelu/c", "cuda-f32", "y", 1.25),
            output("gpt/a", "cuda-f32", "logits", 0.9, mode="injected"),
            output("gelu/a", "host-f64", "y", None, rule="oracle", nmse=3e-30),
            output("sample/a", "cuda-f32", "y", None, rule="exact", dtype="u32"),
        ]
        self.memory = {
            "environment": {"gpu": {"present": "GPU X"}, "nvml_silent": None},
            "rows": [
                scenario("mlp/forward", "clean", QUIET),
                scenario("planted/a-stream", "planted, found", QUIET | {"ledger": "+1 Stream (+0 bytes)"}),
                scenario("planted/two-mebibytes", "planted, found", QUIET | {"driver_bytes": 2097152, "nvml_bytes": 2097152}),
                scenario("planted/a-crash", "planted, found", None),
            ],
        }
        rows = [timing("touchstone", 20.0), timing("pytorch eager", 900.0), timing("pytorch compiled", 150.0)]
        rows[0]["bandwidth_share"] = 0.0625
        rows.append(timing("touchstone", 5e3, measure="prefill", at="16 tokens", unit="us a prompt", tokens_per_s=3200.0, matrix_share=0.25))
        rows.append(timing("touchstone", 24.0, measure="context", at="positions 8 to 9", times_first=1.2))
        rows.append(timing("touchstone", 25.0, measure="handoffs", at="batch 1, 9 tokens", unit="us a step"))
        cycles = {"times": 6.0, "work": 512.0, "wait": 290.0}
        rows.append(timing("touchstone", 2.4, measure="handoffs", at="batch 1, 9 tokens: hidden", unit="us a step", cycles=cycles))
        model = {"model": "m", "dtype": "f32", "device": "cuda:0, GPU X", "new_tokens": 200, "rows": rows, "peers": {"device": "GPU X"}}
        self.speed = {"models": [model]}
        other = {"rows": [timing("touchstone", 2e5, measure="cold-start", at="prompt", unit="us to the first byte")], "peers": None}
        self.other_speed = {"models": [model | other]}
        self.logs = {"doctor": "ok       driver        driver for CUDA 13.0\nok       gpu           cuda:0: GPU X\n"}
        self.logs |= {"functional": TRIALS.format(9, 0, 1, 0), "memory": TRIALS.format(4, 0, 0, 0)}
        self.logs |= {f"repeat-{suite}": TRIALS.format(4, 0, 0, 0) * 5 for suite in ("functional", "memory")}
        self.logs |= {f"sanitizer-{tool}": f"{SEVEN}========= {said}\n" for tool, said in CLEAN.items()}

    def render(self, *options: str, compared: str | None = None) -> str:
        """The page; asserts that there is one."""
        code, page, complaint = self.attempt(*options, compared=compared)
        self.assertEqual(code, 0, complaint)
        return page

    def attempt(self, *options: str, compared: str | None = None, without: str = "") -> tuple[int, str, str]:
        failed = sum(not row["passed"] for row in self.functional)
        self.logs["functional"] += compared or f"{len(self.functional)} outputs compared, {failed} failed, worst\n"
        files = {f"{name}.log": text for name, text in self.logs.items()}
        files |= {f"{name}.json": json.dumps(getattr(self, name)) for name in ("functional", "memory")}
        files |= {"speed-f32.json": json.dumps(self.speed), "latency.svg": "<svg xmlns='http://www.w3.org/2000/svg'></svg>"}
        files |= {f"speed-{name}.json": json.dumps(self.other_speed) for name in ("peers", "bf16", "large", "service", "prefill", "handoffs", "handoffs-large")}
        for name, text in files.items():
            if name != without:
                (self.folder / name).write_text(text)
        words = ["figures.py", str(self.folder), "--commit", "0123abc", "--date", "2026-01-02", "--out", str(self.out), *options]
        complaint = io.StringIO()
        with mock.patch.object(sys, "argv", words), contextlib.redirect_stderr(complaint), contextlib.redirect_stdout(io.StringIO()):
            code = figures.main()
        page = self.out / "h200.md"
        return code, page.read_text() if page.exists() else "", complaint.getvalue()

    def test_speed_of_another_commit_says_so(self) -> None:
        """Old times could pass for those of the commit that the suites ran on."""
        self.assertNotIn("Measured of commit", self.render())
        self.assertIn("\n\nMeasured of commit `4567def`. ", self.render("--speed-commit", "4567def"))

    def test_figures_reach_their_rows(self) -> None:
        """A column could show another's figures."""
        page = self.render()
        for row in [
            "| GPU | cuda:0: GPU X |",
            "| driver | driver for CUDA 13.0 |",
            "| commit | `0123abc` |",
            "| m | f32 | **Touchstone** | 20.0 | 25.0 | 6.2% |  |",
            "| m | f32 | PyTorch eager | 900.0 | 1125.0 |  | 45.0 × |",
            "| m | f32 | prefill: 16 tokens | **Touchstone** | 5000.0 | a prompt | 3200 | 25.0% |  |",
            "| m | f32 | context: positions 8 to 9 | **Touchstone** | 24.0 | a token |  |  | 1.20 × the first |",
            "| m | f32 | cold-start: prompt | **Touchstone** | 200000.0 | to the first byte |  |  |  |",
            "| m | f32 | **batch 1, 9 tokens** |  |  |  | 25.0 |",
            "| m | f32 | hidden | 6 | 512 | 290 | 2.4 |",
            "| gelu | f32 | cuda-f32 | 3 | 0.750 | 1.250 | 1.750 | 1.500 | 0 |",
            "| oracle | host-f64 | 1 | 0 | worst mean square error over mean square: 3.0e-30, allowed 1e-24 | gelu |",
            "| functional | 1 | 9 | 0 | 1 |",
            "| functional, repeated | 5 | 20 | 0 | 0 |",
            "| memcheck | 7 | 0 | leak summary: 0 bytes leaked in 0 allocations; error summary: 0 errors | clean |",
            "| cuda-f32 | 4 | 100 | 1 | 3 | 0 |",
            "| a stream | cuda-f32 | the ledger | found |",
            "| two mebibytes | cuda-f32 | `cuMemGetInfo`, NVML | found |",
            "| a crash | cuda-f32 | the parent process | found |",
        ]:
            self.assertIn(row, page)
        self.assertIn("# Measured on GPU X\n", page)
        self.assertIn("The fastest PyTorch mode takes 7.50 times as long as Touchstone.", page)
        self.assertNotIn("FAILED", page)

    def test_failures_are_named(self) -> None:
        """A failure could drown in a table of passes, and one without a finite figure could vanish from the worst."""
        self.functional[1] |= {"ratio": None, "passed": False, "reason": "is NaN at element 4"}
        self.logs["functional"] = "---- gelu/b cuda-f32 ----\ny: is NaN\n" + TRIALS.format(8, 1, 1, 0)
        self.logs["repeat-memory"] = TRIALS.format(4, 0, 0, 0) + TRIALS.format(3, 1, 0, 0)
        self.memory["rows"][0]["verdict"] = "FAILED"
        self.memory["rows"][1]["verdict"] = "FAILED"
        page = self.render()
        for row in [
            "| gelu | f32 | cuda-f32 | 3 | 1.250 | not finite | 1.750 | 1.500 | **1 FAILED** |",
            "- FAILED: `gelu/b cuda-f32`, y: is NaN at element 4",
            "| functional | 1 | 8 | **1 FAILED** | 1 |",
            "- FAILED: functional: `gelu/b cuda-f32`: y: is NaN",
            "| memory, repeated | 2 | 7 | **1 FAILED** | 0 |",
            "| cuda-f32 | 4 | 100 | 0 | 2 | **2 FAILED** |",
            "- FAILED: `mlp/forward` on cuda-f32",
            "| a stream | cuda-f32 | the ledger | **FAILED** |",
        ]:
            self.assertIn(row, page)
        self.assertIn("not finite", (self.out / "error-ratios.svg").read_text())

    def test_a_run_that_crashed_is_not_passed_over(self) -> None:
        """A crash leaves no result: the runs before it would stand alone, all green."""
        self.logs["repeat-functional"] = TRIALS.format(4, 0, 0, 0) * 2 + "run 3 of 5 failed\n"
        self.logs["memory"] = "running 4 tests\n"
        page = self.render()
        self.assertIn("| functional, repeated | 2, **FAILED**: run 3 of 5 | 8 | 0 | 0 |", page)
        self.assertIn("| memory | **FAILED**: no run came to a result |", page)

    def test_a_sanitizer_is_clean_only_by_its_own_words(self) -> None:
        """A tool that found something, died early or watched nothing could count as clean."""
        self.logs["sanitizer-memcheck"] = SEVEN + "========= ERROR SUMMARY: 0 errors\n"
        self.logs["sanitizer-racecheck"] = self.logs["sanitizer-racecheck"].replace("(0 errors", "(10 errors")
        self.logs["sanitizer-initcheck"] = TRIALS.format(0, 0, 9, 3) + "========= ERROR SUMMARY: 0 errors\n"
        self.logs["sanitizer-synccheck"] = SEVEN.replace("7 passed; 0 failed", "6 passed; 1 failed") + "========= ERROR SUMMARY: 0 errors\n"
        page = self.render()
        self.assertNotIn("| clean |\n", page.split("## compute-sanitizer")[1].split("## Memory")[0])
        for problem in ("no leak summary", "errors", "no trial passed", "trials failed"):
            self.assertIn(f"| **FAILED**: {problem} |", page)

    def test_every_process_under_a_sanitizer_must_come_to_its_end(self) -> None:
        """Of several processes under one tool, one could die unseen behind the good words of the others, or a trial count once for each."""
        one = self.logs["sanitizer-racecheck"]
        said = f"========= {CLEAN['racecheck']}\n"
        for log, cell in (
            (one + one.replace("case_6", "other"), "| racecheck | 8 | 0 | racecheck summary: 0 hazards displayed (0 errors, 0 warnings) | clean |"),
            (one + one.replace(said, ""), "**FAILED**: no racecheck summary |"),
            ("run 2 of 2 failed\n" + one, "**FAILED**: run 2 of 2 |"),
        ):
            self.logs["sanitizer-racecheck"] = log
            self.assertIn(cell, self.render())

    def test_a_missing_file_is_an_error_that_names_it(self) -> None:
        """A page could be written of what happened to be there."""
        self.assertEqual(self.attempt()[0], 0)
        for file in sorted(self.folder.iterdir()):
            with self.subTest(file=file.name):
                content = file.read_text()
                file.unlink()
                code, _, complaint = self.attempt(without=file.name)
                self.assertEqual(code, 2)
                self.assertIn(file.name, complaint)
                self.assertEqual(self.attempt("--partial", without=file.name)[0], 0)
                file.write_text(content)

    def test_partial_says_what_was_not_run(self) -> None:
        """A missing section could read as one without failures."""
        code, page, _ = self.attempt("--partial", without="memory.json")
        self.assertEqual(code, 0)
        self.assertIn("## Memory\n\nnot run\n", page)
        self.assertEqual(self.attempt("--partial", without="latency.svg")[0], 0)

    def test_inputs_of_two_runs_or_machines_do_not_meet(self) -> None:
        """A suite that dies leaves the JSON of the run before beside its own log."""
        self.assertIn("not of one run", self.attempt(compared="99 outputs compared, 0 failed\n")[2])
        self.logs["functional"] = TRIALS.format(9, 0, 1, 0)
        self.speed["models"][0]["peers"]["device"] = "GPU Y"
        self.assertIn("not of one machine", self.attempt()[2])

    def test_malformed_inputs_are_refused(self) -> None:
        """A field that was renamed, or a pass without a figure, could become a gap or a zero."""
        good, log = copy.deepcopy(self.functional), self.logs["functional"]
        for change in ({"ratio": None}, {"ratio": "0.5"}, {"ratio": float("nan")}, {"passed": 1}, {"rule": "hope"}):
            with self.subTest(change=change):
                self.functional, self.logs["functional"] = copy.deepcopy(good), log
                self.functional[0] |= change
                code, _, complaint = self.attempt()
                self.assertEqual(code, 2)
                self.assertIn("functional.json", complaint)
        self.functional, self.logs["functional"] = good, log
        speed = self.speed["models"][0]
        for change, said in (
            ({"new_tokens": 50}, "new_tokens is 50, expected 200"),
            ({"peers": None}, "peers is not an object"),
            ({"rows": speed["rows"][1:3]}, "expected times above 0 and one row of touchstone, found 0"),
            ({"rows": [speed["rows"][0] | {"times_ours": 2.0}]}, "times_ours is 2.0"),
            ({"rows": [{key: value for key, value in speed["rows"][0].items() if key != "median"}]}, "no field 'median'"),
        ):
            with self.subTest(change=change):
                self.speed, self.logs["functional"] = {"models": [speed | change]}, log
                self.assertIn(said, self.attempt()[2])

    def test_the_order_of_rows_changes_nothing(self) -> None:
        """Trials end in any order: the committed files would change with every run."""
        log = self.logs["functional"]
        self.render()
        first = {file.name: file.read_bytes() for file in self.out.iterdir()}
        self.functional.reverse()
        self.memory["rows"].reverse()
        self.logs["functional"] = log
        self.render()
        self.assertEqual(first, {file.name: file.read_bytes() for file in self.out.iterdir()})

    def test_pictures_are_svg_with_a_mark_for_every_output(self) -> None:
        """An output could be missing from the picture, or the file could not be XML."""
        self.render()
        for name in ("latency.svg", "error-ratios.svg"):
            root = xml.etree.ElementTree.parse(self.out / name).getroot()
            self.assertTrue(root.tag.endswith("svg"))
        # Four gated outputs, the tap once more, and one dot in the legend.
        self.assertEqual(len(re.findall("<circle", (self.out / "error-ratios.svg").read_text())), 6)

    def test_the_limits_are_the_gates(self) -> None:
        """The line in the picture could stay where the limit was."""
        source = JUDGE.read_text()
        for name in ("RMS_RATIO_MAX", "LARGEST_RATIO_MAX", "ORACLE_NMSE_MAX"):
            found = re.search(rf"pub const {name}: f64 = ([0-9.e-]+);", source)
            self.assertEqual(float(found[1]), getattr(figures_inputs, name))


if __name__ == "__main__":
    unittest.main()
