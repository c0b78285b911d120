"""The third member of the invariant: the exported file computes what the slim network computes."""

import pytest
import torch

from benchmarks.trial import flatten_outputs, random_keep, relative_error
from curlfx.deploy import export_onnx
from tests.networks.fixtures import FIXTURES
from tests.oracles import Laboratory

NETWORKS = [
    "basic_downsample",
    "option_a",
    "shuffle_v2",
    "grouped_conv",
    "squeeze_excitation",
    "unet",
    "attention_fused_matmul",
    "dict_output",
    "response_norm",
    "moments",
    "cbam_max_of_dim",
]


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_equals_slim(name, tmp_path):
    import onnxruntime

    case = FIXTURES[name]
    laboratory = Laboratory.of(case.build().float(), tuple(x.float() for x in case.inputs()))
    slim = laboratory.slim(random_keep(laboratory.coupling.groups)).module.eval()
    path = tmp_path / "slim.onnx"
    export_onnx(slim, laboratory.traced.example_inputs, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for batch in (1, 2, 5):
        inputs = tuple(x.float() for x in case.inputs(batch))
        with torch.no_grad():
            expected = flatten_outputs(slim(*inputs))
        outputs = session.run(None, {key: x.numpy() for key, x in zip(names, inputs, strict=True)})
        # The order of a dictionary's outputs is the exporter's; shapes differ here, so pair by shape.
        by_shape = {output.shape: torch.from_numpy(output) for output in outputs}
        assert len(by_shape) == len(expected)
        for tensor in expected:
            assert relative_error(by_shape[tuple(tensor.shape)], tensor) <= 1e-4
