"""The whole job as one checked value: defaults, a YAML file, and ``key=value`` overrides on top.

Source: keys follow the field: Torch-Pruning's argument names, Ultralytics' overrides, Olive's resolved file.
"""

from curlfx.run.config.job import PUBLISHED, RunConfig
from curlfx.run.config.outcome import BenchConfig, ExportConfig
from curlfx.run.config.recovery import RecoveryConfig
from curlfx.run.config.target import TargetConfig

__all__ = ["PUBLISHED", "BenchConfig", "ExportConfig", "RecoveryConfig", "RunConfig", "TargetConfig"]
