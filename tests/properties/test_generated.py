"""Every invariant over composed networks; hypothesis draws them and shrinks what fails.

The networks of one profile are shared out over several tests, so that pytest-xdist runs them side by side. A failure
prints the recipe and the call that repeats it; `python benchmarks/fuzz.py` examines thousands outside pytest.
"""

import pytest
from hypothesis import HealthCheck, given, note, seed, settings
from hypothesis import strategies as st

from tests.networks.composed import Recipe
from tests.networks.strategies import networks, plans
from tests.oracles import Laboratory
from tests.properties import invariants
from tests.properties.conftest import NIGHTLY
from tests.properties.examination import examine

CHUNKS = 10
SHARES = [0, *(pytest.param(chunk, marks=pytest.mark.slow) for chunk in range(1, CHUNKS))]
ONNX_SHARE = 1 if NIGHTLY else 8  # every which network is exported

SETTINGS = settings(
    derandomize=False,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


def shared_out(total: int, chunk: int, check: object) -> None:
    """Run a hypothesis test over one chunk of `total` networks: the same ones every time, or fresh ones nightly."""
    if NIGHTLY:
        settings(SETTINGS, max_examples=total // CHUNKS)(check)()
    else:
        seed(chunk)(settings(SETTINGS, max_examples=total // CHUNKS, database=None)(check))()


@pytest.mark.parametrize("chunk", SHARES)
def test_generated_networks(chunk):
    @given(recipe=networks(), data=st.data())
    def check(recipe: Recipe, data: st.DataObject) -> None:
        def keep_of(coupling):
            keep = data.draw(plans(coupling), label="keep")
            note(f"repeat it with: examine({recipe!r}, lambda coupling: {keep!r}, onnx={onnx})")
            return keep

        onnx = recipe.seed % ONNX_SHARE == 0
        examine(recipe, keep_of, onnx=onnx)

    shared_out(2000 if NIGHTLY else 200, chunk, check)


@pytest.mark.parametrize("chunk", SHARES)
def test_generated_networks_live_on(chunk):
    @given(recipe=networks(max_depth=5), data=st.data())
    def check(recipe: Recipe, data: st.DataObject) -> None:
        laboratory = Laboratory.of(recipe.build(), recipe.inputs())
        keep = data.draw(plans(laboratory.coupling), label="keep")
        note(laboratory.text)
        invariants.same_as_the_original(laboratory, recipe.build(), recipe.inputs())
        invariants.open_gates_change_nothing(laboratory, recipe.inputs())
        invariants.empty_keep_set_is_no_change(laboratory)
        invariants.slim_keeps_names(laboratory, keep)
        invariants.slim_copies(laboratory, keep, recipe.inputs())
        invariants.slim_twice_is_slim_once(laboratory, keep, recipe.inputs())
        invariants.slim_trains(laboratory, keep, recipe.inputs(3))
        invariants.input_is_left_alone(laboratory, keep, recipe.inputs())

    shared_out(500 if NIGHTLY else 40, chunk, check)
