"""The way out: an ONNX file that computes the same, and how fast it does."""

from curlfx.deploy.bench import BenchEntry, BenchReport, BenchSettings, bench
from curlfx.deploy.breakdown import Breakdown, OperatorTime, SlowConvolution
from curlfx.deploy.environment import environment
from curlfx.deploy.export import export_onnx
from curlfx.deploy.latency_table import LatencyTable
from curlfx.deploy.measure import TableSettings, measure_latency
from curlfx.deploy.meet import MeasuredPlan, check_request, plan_for_latency
from curlfx.deploy.model_file import OnnxFile, check_onnx
from curlfx.deploy.parity import ParityReport, parity
from curlfx.deploy.plot import plot_bench
from curlfx.deploy.precision import PRECISIONS, Precision
from curlfx.deploy.prepare import prepare
from curlfx.deploy.profile import NodeTime, profile
from curlfx.deploy.program import load_program, save_program
from curlfx.deploy.quantize import QuantReport, quantize
from curlfx.deploy.statistics import Latency, Speedup

__all__ = [
    "PRECISIONS",
    "BenchEntry",
    "BenchReport",
    "BenchSettings",
    "Breakdown",
    "Latency",
    "LatencyTable",
    "MeasuredPlan",
    "NodeTime",
    "OnnxFile",
    "OperatorTime",
    "ParityReport",
    "Precision",
    "QuantReport",
    "SlowConvolution",
    "Speedup",
    "TableSettings",
    "bench",
    "check_onnx",
    "check_request",
    "environment",
    "export_onnx",
    "load_program",
    "measure_latency",
    "parity",
    "plan_for_latency",
    "plot_bench",
    "prepare",
    "profile",
    "quantize",
    "save_program",
]
