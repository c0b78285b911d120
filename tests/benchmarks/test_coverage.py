"""What the coverage table says of its rows, and which models the command line chooses."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(autouse=True)
def beside_the_programs(monkeypatch):
    """The programs import each other by their plain names, as they do when they are started."""
    monkeypatch.syspath_prepend(FOLDER)
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(FOLDER):
            del sys.modules[name]


def row(model, channels, reasons, **more):
    return {
        "model": model,
        "kind": "",
        "channels": channels,
        "reasons": reasons,
        "statistics_change": 0,
        "seconds": {"trace": 1.0, "couple": 0.5},
        **more,
    }


ODD = "no rule for aten.odd"
ROWS = [
    row("whole", 90, {"an output of the network": 10}),
    row(
        "mixed", 30, {"aten.softmax.int runs over these channels": 50, "no rule for aten.odd": 10}, unsupported=["odd"]
    ),
    row("stuck", 0, {ODD: 4}, unsupported=["odd"]),
    {"model": "broken", "kind": "", "failure": "trace: TraceError: no"},
]


def test_free_share_leaves_out_what_cannot_go():
    from coverage_row import free_share

    assert [free_share(found) for found in ROWS[:3]] == [1.0, 0.75, 0.0]
    assert free_share(row("outputs alone", 0, {"an output of the network": 3})) == 1.0


def test_summary_counts_stages_and_families():
    from coverage_table import summary

    lines = "\n".join(summary(ROWS))
    assert "3 of 4 models passed." in lines
    assert "Of 4: 3 traced, 3 coupled, 0 slimmed, 0 equal to gated, 0 equal in onnxruntime." in lines
    assert "median 75.0%, all in 1 models, least 0.0% (stuck)." in lines
    assert "Covered (95% or more of them free): 1 of 4." in lines


def test_ranking_names_what_is_in_the_way():
    from coverage_table import ranking

    text = ranking(ROWS)
    assert "  broken: trace: TraceError: no" in text
    assert "     2    2       14  no rule for aten.odd: mixed 75%, stuck 0%" in text
    assert "     2  odd: mixed, stuck" in text
    assert "     1       50  aten.softmax.int runs over these channels (a distribution over channels" in text
    assert text.index("    0.0%  stuck") < text.index("   75.0%  mixed")


def test_table_leaves_out_empty_columns():
    from coverage_table import table

    header, _, first, *_ = table(ROWS).splitlines()
    assert "couple s" in header
    assert "torch vs onnx" not in header
    assert "| whole" in first
    assert "100.0 %" in first


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    from coverage import read_record

    record = tmp_path / "record.jsonl"
    record.write_text("\n".join([json.dumps(ROWS[0]), json.dumps({**ROWS[0], "channels": 91}), '{"model": "mi']))
    assert {name: found["channels"] for name, found in read_record(record).items()} == {"whole": 91}


def names(*options):
    from coverage import chosen, parse

    return [entry.name for entry in chosen(parse(["--zoo", "dense", *options]))]


def test_models_by_pattern_and_part():
    everything = names()
    assert names("--only", "unet*") == ["unet", "unet_bilinear"]
    assert names("--only", "LSTM") == ["lstm"]
    assert sorted(names("--part", "1/2") + names("--part", "2/2")) == sorted(everything)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--part", "3/2"), "want I/N"),
        (("--part", "half"), "want I/N"),
        (("--only", "resnet*"), "no model of dense"),
        (("--models", "unet,unett"), "unett"),
    ],
)
def test_refusals(options, said):
    with pytest.raises(SystemExit, match=said):
        names(*options)


def test_rows_that_lack_what_is_asked_for_are_measured_again():
    from coverage import parse, stale

    complete = {**ROWS[0], "gated_vs_slim": 0.0}
    assert not stale(ROWS[0], parse(["--couple-only"]))
    assert stale(ROWS[0], parse(["--skip-onnx"]))
    assert not stale(complete, parse(["--skip-onnx"]))
    assert stale(complete, parse([]))
    assert not stale(ROWS[3], parse([]))
    assert stale(ROWS[3], parse(["--retry"]))


def test_every_family_is_told_apart():
    from zoo_timm import FAMILIES

    kinds = [variant.family for variant in FAMILIES.values()]
    assert len(kinds) >= 200
    assert len(set(kinds)) == len(kinds), sorted(kind for kind in set(kinds) if kinds.count(kind) > 1)


def test_networks_by_hand_run():
    import torch
    from zoo_dense import dense_models

    for entry in dense_models().values():
        with torch.no_grad():
            output = entry.build().double().eval()(*entry.inputs(2))
        assert torch.isfinite(output).all(), entry.name


@pytest.mark.slow
def test_cpu_seconds_are_limited():
    program = "import coverage; coverage.limit_cpu(0.5)\nwhile True: pass"
    ended = subprocess.run([sys.executable, "-c", program], cwd=FOLDER, check=False, env={"OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGXCPU


def test_what_is_said_of_a_process_that_ended():
    from coverage import parse, why_ended

    assert parse([]).timeout == 600
    assert why_ended(-signal.SIGXCPU, 600.0) == "no result after 600 s of CPU time"
    assert why_ended(-9, 600.0) == "process ended with -9"


def in_its_own_types(module):
    import torch
    from coverage_row import lower_floats

    from curlfx.graph import trace

    torch.manual_seed(0)
    x = torch.randn(2, 4, dtype=torch.float64)
    return lower_floats(trace(module.double(), (x,)))


def test_lower_floats():
    import torch
    from torch import nn

    class Inside(nn.Linear):
        """The mean is taken in single precision, as some normalisations do."""

        def forward(self, x):
            return super().forward(x) - x.float().mean(-1, keepdim=True).double()

    class Table(nn.Linear):
        """What depends on no input is computed in single precision, as tables of positions are."""

        def forward(self, x):
            return super().forward(x) + torch.linspace(0, 1, 4, dtype=torch.float32).sin().double()

    class Half(nn.Linear):
        def forward(self, x):
            return super().forward(x.bfloat16().float().double())

    assert in_its_own_types(nn.Linear(4, 4)) == []
    assert in_its_own_types(Inside(4, 4)) == ["float32"]
    assert in_its_own_types(Table(4, 4)) == []
    assert in_its_own_types(Half(4, 4)) == ["bfloat16", "float32"]


def test_lower_floats_follow_the_network_up():
    import torch
    from coverage_row import lower_floats
    from torch import nn

    from curlfx.graph import propagate, trace

    class Inside(nn.Linear):
        def forward(self, x):
            return super().forward(x) - x.float().mean(-1, keepdim=True)

    traced = trace(Inside(4, 4).double(), (torch.randn(2, 4, dtype=torch.float64),))
    traced.to(torch.float32).to(torch.float64)
    propagate(traced)
    assert lower_floats(traced) == []


def test_table_and_summary_say_what_was_special():
    from coverage_table import summary, table

    rows = [row("plain", 90, {}), row("mixed", 90, {}, lower_inside=["float32"], fixed_batch="no counterpart")]
    assert "float32 inside" in table(rows).splitlines()[-1]
    assert "fixed" in table(rows).splitlines()[-1]
    lines = "\n".join(summary(rows))
    assert "lower float type, compared in float64 throughout: mixed." in lines
    assert "Exported for the example's batch size only: mixed." in lines
