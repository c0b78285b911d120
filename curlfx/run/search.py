"""The plan of a job that searches for its widths: a supernet is trained, the best network of it found and started."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from curlfx.cost import CostModel
from curlfx.deploy.meet import TOLERANCE, meet_latency
from curlfx.graph.trace import trace
from curlfx.graph.traced import TracedModel
from curlfx.planning import SlimPlan
from curlfx.planning.apply import slim as slim_by_plan
from curlfx.planning.target import Amount
from curlfx.recovery import evaluate, processes, recalibrate, recover
from curlfx.recovery.batches import batches
from curlfx.run.directory import write_json
from curlfx.run.job import EVALUATION_BATCH, START, Job, save_tensors
from curlfx.run.latency import measured_table, tell
from curlfx.run.space import divided, space_of
from curlfx.run.subject import random_network
from curlfx.run.training import measure_norms
from curlfx.search import Candidate, ProxyData, SearchResult, Space, Supernet, plan_genome, search, train_supernet
from curlfx.search.workers import open_engine

SEARCH = "search.json"
"""What a search found: the best network, the front, the controls."""


def plan_searched(job: Job) -> tuple[SlimPlan, dict[str, Any]]:
    """The plan, and what was found on the way, as the result of the stage has it.

    The weights that the network starts from, and what was found, are left in the run directory; so are the supernet
    and every number that was measured, so that a killed run goes on where it was. Of several processes all train, and
    the first one searches.
    Raises: BudgetError when no network of the space meets the target, or none that was measured a latency.
    """
    config, wanted, device = job.config, job.config.search, str(job.subject.device)
    group = processes()
    space = space_of(config, job.coupling, job.scores)
    supernet = Supernet(job.traced, space, wanted.cuts, device=device)
    job.say(
        f"supernet: {len(space.grids)} genes, {space.size:.3g} networks, {len(supernet.stages)} stages, cut behind "
        f"{', '.join(stage.end for stage in supernet.stages[:-1]) or 'nothing'}"
    )
    data = divided(job.data, wanted.held_out)
    loader = data.loader("train", wanted.train.batch_size, seed=config.seed, augment=True, shuffle=True)
    trained = train_supernet(
        supernet, loader, wanted.train.sandwich(seed=config.seed, device=device), progress=job.progress,
        checkpoint=job.checkpoint("supernet.pt"), resume=True,
    )  # fmt: skip
    for record in trained.history[trained.resumed_after :]:
        job.log(f"supernet epoch {record.epoch}  loss {record.loss:.4f}  accuracy {record.accuracy:.4f}")
    job.say(f"trained the supernet: {len(trained.history)} epochs in {trained.seconds:.1f} s")
    judged = ProxyData.of(loader, data.loader("val", EVALUATION_BATCH), calibration_batches=wanted.calibration_batches)
    found, plan, controls, measured = group.on_leader(lambda: _searched(job, supernet, judged))
    accuracies = {name: _recovered(job, supernet, one, name) for name, one in controls.items()}
    result = found.as_dict(space)
    for name, accuracy in accuracies.items():
        result["controls"][name]["accuracy"] = accuracy
    write_json(job.file(SEARCH), {**result, "stages": [stage.end for stage in supernet.stages], "proxy": wanted.proxy})
    short = {"looked_at": found.looked_at, "value": found.best.value, "controls": accuracies}
    return plan, {"search": short, **measured}


Searched = tuple[SearchResult, SlimPlan, dict[str, SlimPlan], dict[str, Any]]
"""What was found, the plans of the best network and of the controls, and what was measured on the way."""


def _searched(job: Job, supernet: Supernet, judged: ProxyData) -> Searched:
    """Search; with a latency as the target again within what the best network's measured latency says, until it meets.

    Raises: BudgetError.
    """
    config, wanted, tried = job.config, job.config.search, list[tuple[SearchResult, SlimPlan, CostModel]]()
    with open_engine(supernet, judged, wanted.proxy, wanted.workers, wanted.ray_address) as engine:

        def propose(bounds: Mapping[str, Amount], costs: CostModel) -> SlimPlan:
            found = search(
                supernet, judged, bounds, wanted.evolution(seed=config.seed), proxy=wanted.proxy, lower=wanted.lower,
                controls=wanted.controls, costs=costs, engine=engine, state=job.checkpoint(SEARCH),
                progress=job.progress,
            )  # fmt: skip
            tried.append((found, _planned(job, supernet.space, found.best, costs), costs))
            return tried[-1][1]

        target, measured = config.target.as_mapping(), dict[str, Any]()
        if config.target.latency_ms is None:
            chosen = propose(target, job.cost)
        else:
            table, settings = measured_table(job, job.traced, job.coupling)
            error = table.prediction_error(job.traced, job.coupling)
            met = meet_latency(
                job.traced, job.coupling, target, table, propose, settings, least=wanted.lower * (1 - TOLERANCE)
            )
            chosen, measured = met.plan, {"latency": tell(job, met, error)}
    found, plan, costs = next(one for one in tried if one[1].keep == chosen.keep)
    _tell(job, found)
    if wanted.start != "dense":
        save_tensors(_started(job, supernet, plan).module, job.checkpoint(START))
    controls = {name: _planned(job, supernet.space, one, costs) for name, one in found.controls.items()}
    return found, plan, controls, measured


def _planned(job: Job, space: Space, candidate: Candidate, costs: CostModel) -> SlimPlan:
    config = job.config
    return plan_genome(
        job.traced, job.coupling, space, job.scores, candidate, config.target.as_mapping(), costs, seed=config.seed
    )


def _started(job: Job, supernet: Supernet, plan: SlimPlan) -> TracedModel:
    """The slim network with the weights that its recovery starts from, in eval mode, on the CPU."""
    config, device = job.config, str(job.subject.device)
    match config.search.start:
        case "dense":
            return slim_by_plan(job.traced, plan, job.coupling, absorb_bias=config.absorb_bias)
        case "scratch":
            fresh = trace(random_network(config, job.subject.data.num_classes), (job.subject.example,))
            return slim_by_plan(fresh, plan, job.coupling)
        case "supernet":
            shared = job.traced.clone()
            state = supernet.network.module.state_dict()
            shared.set_parameters({name: state[name].cpu() for name in shared.tensors() if name in state})
            network = slim_by_plan(shared, plan, job.coupling)
            loader = job.data.loader("train", config.search.train.batch_size, seed=config.seed, shuffle=True)
            drawn = itertools.chain.from_iterable(batches(loader, epoch) for epoch in itertools.count())
            usable = (batch for batch in drawn if len(batch[0]) > 1)
            calibration = itertools.islice(usable, config.search.calibration_batches)
            recalibrate(network.module, calibration, device=device)
            return network


def _recovered(job: Job, supernet: Supernet, plan: SlimPlan, name: str) -> float:
    """Accuracy of a control on the test images, started and recovered as the network that was found."""
    recipe = job.config.recovery.of(seed=job.config.seed, device=str(job.subject.device))
    network = _started(job, supernet, plan)
    measure_norms(job, network.module)
    recover(
        network, job.data, recipe, teacher=job.traced, stage=f"recover, {name}", progress=job.progress,
        checkpoint=job.checkpoint(f"control-{name}.pt"), resume=True,
    )  # fmt: skip
    accuracy = evaluate(network.module, job.data.loader("test", EVALUATION_BATCH), device=str(job.subject.device))
    job.say(f"accuracy of the control '{name}': {accuracy:.4f}")
    return accuracy


def _tell(job: Job, found: SearchResult) -> None:
    job.say(f"search: {found.looked_at} networks compared, {found.measured} measurements, {found.known} known before")
    shown = {"found": found.best, **found.controls}
    for name, one in shown.items():
        job.say(f"proxy of {name}: {one.value:.5f} at {one.cost.macs / job.cost.dense.macs:.1%} of the MACs")
