"""Parts of genomes measured by Ray workers: on this machine, or on a cluster."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from curlfx.errors import CheckError, ConfigError
from curlfx.graph import TracedModel
from curlfx.search.engine import Engine
from curlfx.search.proxy import Part, Proxy, ProxyData, ProxyName, make_proxy
from curlfx.search.ship import to_bytes
from curlfx.search.space import Space
from curlfx.search.supernet import Supernet

AGAIN = 8
"""Times that a part is handed to another worker when one dies over it."""


class Recipe:
    """What a worker makes its proxy from: the supernet's weights, its space and cuts, and the images.

    Args:
        supernet: Trained.
        data: Images to judge by.
        name: Which proxy.

    Attributes:
        device: Kind of device that workers measure on.
    """

    def __init__(self, supernet: Supernet, data: ProxyData, name: ProxyName) -> None:
        self._network: TracedModel = copy.deepcopy(supernet.network).to("cpu")  # a clone shares what `to` moves
        self._space: Space = supernet.space
        self._cuts = tuple(stage.end for stage in supernet.stages[:-1])
        self.device, self._name, self._data = supernet.device.type, name, data.to(torch.device("cpu"))

    def make(self) -> Proxy:
        """The proxy, which gives the numbers that it gives in the process it came from, up to the rounding of sums."""
        supernet = Supernet(self._network, self._space, self._cuts, device=self.device)
        return make_proxy(self._name, supernet, self._data)


_made: dict[str, Proxy] = {}


def measure_part(key: str, recipe: Callable[[], bytes], part: Part) -> float:
    """The number of one part, in a worker; the proxy is made once per worker, and what it is made from fetched once.

    A worker computes with one thread: it has one core, and numbers do not depend on the machine it is on.
    """
    if key not in _made:
        torch.set_num_threads(1)
        _made.clear()
        _made[key] = pickle.loads(recipe()).make()  # noqa: S301 - the driver's own bytes
    return _made[key].measure(part)


class RayEngine:
    """Hands every part to a worker; one that dies costs the part it was at, which another one measures again.

    Args:
        recipe: What workers make their proxy from.
        workers: How many parts are measured at once.
        address: A running cluster; None: Ray on this machine.

    Raises: ConfigError when Ray is not installed or cannot be reached; CheckError when a part fails, or its worker dies
        time and again.
    """

    def __init__(self, recipe: Recipe, workers: int, address: str | None = None) -> None:
        self._ray = load_ray()
        self._started = not self._ray.is_initialized()
        self._workers = workers
        shipped = to_bytes(recipe)  # may refuse: before anything is started
        if self._started:
            self._init(address)
        held = self._ray.put(shipped)
        self._key, self._recipe = held.hex(), partial(self._ray.get, held)
        self._task = self._ray.remote(num_cpus=1, num_gpus=int(recipe.device == "cuda"), max_retries=AGAIN)(
            measure_part
        )

    def measure(self, parts: Iterable[Part]) -> Iterator[tuple[Part, float]]:
        """Each part with its number, in the order in which they become known."""
        waiting, running = iter(parts), dict[Any, Part]()
        while True:
            while len(running) < self._workers and (part := next(waiting, None)) is not None:
                running[self._task.remote(self._key, self._recipe, part)] = part
            if not running:
                return
            ready, _ = self._ray.wait(list(running))
            for reference in ready:
                yield running.pop(reference), self._value(reference)

    def _value(self, reference: Any) -> float:
        try:
            return float(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise CheckError(
                f"search: a worker failed ({reason}); what was measured is kept, go on with fewer workers or workers=0"
            ) from error

    def close(self) -> None:
        """Stop Ray where this engine started it."""
        if self._started:
            self._ray.shutdown()

    def _init(self, address: str | None) -> None:
        options: dict[str, Any] = {"address": address} if address is not None else {"num_cpus": self._workers}
        try:
            self._ray.init(log_to_driver=False, include_dashboard=False, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"ray_address = {address}: no Ray cluster there ({reason})") from error


@contextmanager
def open_engine(
    supernet: Supernet, data: ProxyData, name: ProxyName, workers: int = 0, address: str | None = None
) -> Iterator[Engine | None]:
    """Who measures: ``workers`` Ray workers, or with 0 nobody else (None). Raises: ConfigError without Ray."""
    if workers == 0:
        yield None
        return
    engine = RayEngine(Recipe(supernet, data, name), workers, address)
    try:
        yield engine
    finally:
        engine.close()


def load_ray() -> Any:
    """The package. Raises: ConfigError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise ConfigError("workers: Ray is not installed; pip install 'curlfx[search]', or workers=0") from error
    return ray
