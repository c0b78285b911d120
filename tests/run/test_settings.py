"""Reading a configuration: every fault names its key, the value found and what is wanted."""

import re
from pathlib import Path

import pytest

from curlfx.errors import ConfigError, UsageError
from curlfx.run.config import RunConfig
from curlfx.run.settings import FIELDS, load_config, make_config, wanted
from curlfx.run.subject import plan_options


def test_defaults_are_the_digits_job() -> None:
    config = load_config()
    assert (config.model, config.data, config.importance) == ("curlfx:digits", "digits", "kl")
    assert config.target.as_mapping() == {"macs": "50%"}


def test_overrides_stand_above_the_file(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("seed: 3\nrecovery: {epochs: 7, lr: 0.2}\ntarget: {macs: 40%}\n")
    config = load_config(file, ["recovery.lr=1e-3", "target.params=30%", "round_to=8", "ignored_layers=fc"])
    assert (config.seed, config.recovery.epochs, config.recovery.lr) == (3, 7, 0.001)
    assert config.target.as_mapping() == {"params": "30%"}  # replaces the file's target, does not join it
    assert config.round_to == 8
    assert config.ignored_layers == ("fc",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recovery.epoch=3", "unknown key 'recovery.epoch'; did you mean 'recovery.epochs'?"),
        ("lr=3", "unknown key 'lr'; did you mean 'train.lr'?"),
        ("recovery.lr=-1", "recovery.lr = -1: want a number > 0"),
        ("recovery.lr=nan", "recovery.lr = nan: want a number > 0"),
        ("floor=2", "floor = 2: want a number in [0, 1)"),
        ("round_to=0", "round_to = 0: want a whole number >= 1, or 'auto'"),
        ("seed=x", "seed = x: want a whole number >= 0"),
        ("allocation=all", "allocation = all: want 'global' or 'uniform'"),
        ("allocation=all", "or 'knapsack' or 'greedy'"),
        ("latency_probes=2", "latency_probes = 2: want a whole number >= 3"),
        ("per=latency", "per = latency: needs a latency that is measured: give target.latency_ms too"),
        ("device=gpu", "device = gpu: want auto, cpu, cuda or cuda:1"),
        ("name=a/b", "name = a/b: want letters, digits, '.', '_' and '-'"),
        ("target=50%", "want keys with values: macs, params, padded_macs, size_mb, latency_ms, like target.macs=…"),
        ("noequal", "'noequal': want key=value, like target.macs=50%"),
        (".a=1", "'.a=1': want key=value"),
        ("model={}", "model: want text"),
    ],
)
def test_fault_names_key_value_and_range(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["target.latency_ms=60%", "iterative_steps=2"], "iterative_steps = 2: a latency is met by measuring, in one"),
        (
            ["allocation=knapsack", "iterative_steps=2"],
            "iterative_steps = 2: allocation=knapsack chooses all widths in",
        ),
        (["allocation=greedy", "per=macs"], "per = macs: allocation=greedy weighs costs itself"),
        (["allocation=knapsack", "per=latency", "target.latency_ms=60%"], "per = latency: allocation=knapsack weighs"),
        (["target.macs=0.5", "per=latency"], "per = latency: needs a latency that is measured"),
    ],
)
def test_what_does_not_go_together(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    assert str(caught.value).startswith(message)


def test_a_latency_and_its_allocation() -> None:
    config = load_config(None, ["target.latency_ms=4.5", "target.params=60%", "latency_probes=3", "per=latency"])
    assert config.target.as_mapping() == {"latency_ms": 4.5, "params": "60%"}
    assert plan_options(config)["allocation"] == "global"  # scores per cost are ranked
    assert plan_options(load_config(None, ["target.latency_ms=50%"]))["allocation"] == "knapsack"
    assert plan_options(load_config(None, ["target.latency_ms=50%", "allocation=uniform"]))["allocation"] == "uniform"
    assert plan_options(load_config())["allocation"] == "global"


@pytest.mark.parametrize("amount", ["0%", "101%", "150%", "-5%", "0", "-3", "half", "nan", "''", "[1]", "{}"])
def test_target_out_of_range(amount: str) -> None:
    with pytest.raises(UsageError, match=r"macs = |target\.macs: want"):
        load_config(None, [f"target.macs={amount}"])


@pytest.mark.parametrize(("amount", "value"), [("50%", "50%"), ("0.5", 0.5), ("1.1G", "1.1G"), ("1000000", 1000000)])
def test_target_in_range(amount: str, value: object) -> None:
    assert load_config(None, [f"target.macs={amount}"]).target.as_mapping() == {"macs": value}


def test_all_targets_of_a_job_hold() -> None:
    config = load_config(None, ["target.macs=50%", "target.params=60%"])
    assert config.target.as_mapping() == {"macs": "50%", "params": "60%"}
    with pytest.raises(ConfigError, match="target: want at least one of macs, params, padded_macs, size_mb"):
        load_config(None, ["target={}"])


def test_every_fault_is_reported_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["seed=-1", "bogus=1"])
    first, second = str(caught.value).splitlines()
    assert first == "seed = -1: want a whole number >= 0"
    assert second.startswith("unknown key 'bogus'; known: preset, name, model,")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2\n", "want keys with values, like 'seed: 1'; found list"),
        ("a: [", "not a YAML file"),
        ("a: [1\nb: 2\n", "job.yaml:2: not a YAML file: expected ',' or ']', but got ':'"),
        ("seed: !!python/object/apply:os.getcwd []\n", "not a YAML file"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"job\.yaml(:\d+)?: ") as caught:
        load_config(file)
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration: No such file"):
        load_config(tmp_path / "none.yaml")


def test_resolved_reads_back_to_the_same_configuration() -> None:
    config = load_config(None, ["seed=4", "round_to=auto", "ignored_layers=[a, b]", "weights=w.safetensors"])
    assert make_config(config.resolved()) == config


def test_every_key_says_what_it_takes() -> None:
    assert all(wanted(info) for info in FIELDS.values())
    assert set(RunConfig.model_fields) <= set(FIELDS)


def test_every_key_is_in_the_documentation() -> None:
    docs = Path(__file__).parents[2] / "docs"
    job, trainings = ((docs / name).read_text() for name in ("run.md", "recovery.md"))
    rows = [re.findall(r"`([^`]+)`", line) for line in job.splitlines() if line.startswith("| `")]
    named = {word for row in rows for word in row}
    sections = {row[0].removesuffix(".*"): set(row[1:]) for row in rows if row[0].endswith(".*") or row[0] == "target"}
    bench = next(row for row in rows if row[0] == "export.*")
    sections["export"] = sections["bench"] = set(bench)
    training = set(re.findall(r"`([\w.]+)(?:=\w+)?`", trainings))

    def told(key: str) -> bool:
        section, _, rest = key.rpartition(".")
        if key in named or key in training:
            return True
        if section in ("train", "recovery") or (section == "search.train" and rest in training):
            return rest in training
        if section == "recovery.refine":
            return f"refine.{rest}" in training
        if section == "recovery.overparam":
            return rest in training
        return section != "" and rest in {part for word in sections.get(section, set()) for part in word.split(": ")}

    assert [key for key in FIELDS if not told(key)] == []
    assert not told("bench.lr")
    assert not told("recovery.refine.momentum")
