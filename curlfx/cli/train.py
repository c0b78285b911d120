"""Command ``train``: a whole job whose channels go while the network is trained."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from curlfx.cli.job import AsJson, Explained, Preset, Settings, do_job, split_arguments
from curlfx.errors import ConfigError

DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"gradual": {"interval": "auto"}, "recovery": {"epochs": 0}, "importance": "relevance"}
)
"""What ``curlfx train`` asks for beside the defaults of ``curlfx run``."""


def train(job: Settings = None, preset: Preset = None, explain: Explained = False, as_json: AsJson = False) -> None:
    """Train a network and prune it meanwhile, to a verified report.

    The job of `curlfx run`, with gradual.interval=auto, recovery.epochs=0 and importance=relevance where nothing else
    is said: channels go after every gradual.interval epochs up to gradual.last, until the target is reached, from
    scratch or from weights. Without arguments: scikit-learn's digits, a small residual network, half of the MACs.

    For example:

        curlfx train gradual.interval=2 train.epochs=30

        curlfx train model=curlfx:resnet20 data=cifar10:DIR gradual.physical=true
    """
    from curlfx.run.settings import load_config

    file, overrides = split_arguments(job or [], preset)
    config = load_config(file, overrides, DEFAULTS)
    if config.resume is None and config.gradual.interval == 0:
        raise ConfigError("gradual.interval = 0 prunes after the training: want 'auto' or a number, or curlfx run")
    do_job(config, explain=explain, as_json=as_json)
