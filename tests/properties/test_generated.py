"""Every invariant over networks that hypothesis composes."""

from hypothesis import given, note, settings
from hypothesis import strategies as st

from tests.networks.strategies import networks, plans
from tests.oracles import Laboratory
from tests.properties import invariants


@given(recipe=networks(), data=st.data())
def test_generated_networks(recipe, data):
    laboratory = Laboratory.of(recipe.build(), recipe.inputs())
    keep = data.draw(plans(laboratory.coupling), label="keep")
    note(laboratory.text)
    invariants.same_as_the_original(laboratory, recipe.build(), recipe.inputs())
    for batch in (2, 1, 3):
        invariants.slim_equals_gated(laboratory, keep, recipe.inputs(batch))
    invariants.cost_is_predicted(laboratory, keep)
    invariants.slim_keeps_names(laboratory, keep)
    invariants.input_is_left_alone(laboratory, keep, recipe.inputs())


@settings(max_examples=settings.default.max_examples // 2)
@given(recipe=networks(max_depth=5), data=st.data())
def test_generated_networks_live_on(recipe, data):
    laboratory = Laboratory.of(recipe.build(), recipe.inputs())
    keep = data.draw(plans(laboratory.coupling), label="keep")
    note(laboratory.text)
    invariants.open_gates_change_nothing(laboratory, recipe.inputs())
    invariants.empty_keep_set_is_no_change(laboratory)
    invariants.slim_copies(laboratory, keep, recipe.inputs())
    invariants.slim_twice_is_slim_once(laboratory, keep, recipe.inputs())
    invariants.slim_trains(laboratory, keep, recipe.inputs(3))
