"""The workload: containers have what they are said to have, page what is beyond it, and end with their machine."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from infiniswap.shared.errors import UserError
from infiniswap.simulation.scenario import GIB, Load, Scenario
from infiniswap.simulation.workload import (
    BASE_BYTES,
    FULL_SHARE,
    GROWTH_S,
    LOAD_BYTES_PER_S,
    PEAKS_BYTES,
    Workload,
    make_containers,
)


def generator(seed: int = 1) -> np.random.Generator:
    """Random numbers."""
    return np.random.default_rng(seed)


def test_the_default_is_the_papers_mixture() -> None:
    """90 containers of five kinds in equal numbers: half with all they need, 30 % with 75 %, 20 % with 50 %."""
    containers = make_containers(Scenario(), generator())
    assert Counter(containers.peak_bytes.tolist()) == dict.fromkeys(PEAKS_BYTES, 18)
    shares = Counter((containers.limit_bytes / containers.peak_bytes).round(2).tolist())
    assert shares == {1.0: 45, 0.75: 27, 0.5: 18}
    on_machine = np.bincount(containers.machine, weights=containers.limit_bytes, minlength=32)
    assert (on_machine + BASE_BYTES <= FULL_SHARE * 64 * GIB).all()


def test_the_default_uses_what_the_papers_cluster_uses() -> None:
    """40.8 % with nothing lent, as the mean over seeds; it is what the containers' sizes were chosen for."""
    found = []
    for seed in range(5):
        workload = Workload(Scenario(seed=seed), generator(seed))
        for second in range(1, 301):
            own = workload.second(float(second))
        found.append(own.sum() / (32 * 64 * GIB))
    assert np.mean(found) == pytest.approx(0.408, abs=0.01)


def test_too_much_for_the_machines() -> None:
    """One line that says so."""
    with pytest.raises(UserError, match="90 containers do not fit into 4 machines"):
        make_containers(Scenario(machines=4, containers=90), generator())


def test_what_is_beyond_the_limit_is_paged() -> None:
    """Each container's part of its device: as many slabs as it has beyond its limit, in use once it has grown."""
    scenario = Scenario(spread=2.0)
    workload = Workload(scenario, generator())
    containers = workload.containers
    over = np.ceil((containers.peak_bytes - containers.limit_bytes) * 2.0 / GIB)
    expected = np.bincount(containers.machine, weights=over, minlength=32)
    assert workload.slabs_of_device.tolist() == expected.tolist()
    assert workload.page_ios.sum() == 0
    workload.second(1.0)
    some = int((workload.page_ios > 0).sum())
    for second in range(2, int(GROWTH_S[1]) + 2):
        workload.second(float(second))
    assert some < (workload.page_ios > 0).sum() == over.sum()


def test_a_load_comes_and_goes_at_its_pace() -> None:
    """By hand: 4 GiB on all machines for 10 s, a GiB a second up and down."""
    loads = [(Load(20, 32, size_bytes=size, for_s=10),) for size in (0, 4 * GIB)]
    quiet, loaded = (Workload(Scenario(loads=load), generator()) for load in loads)
    expected = {20: 1, 21: 2, 22: 3, **dict.fromkeys(range(23, 30), 4), 30: 3, 31: 2, 32: 1}
    for second in range(1, 41):
        more = loaded.second(float(second)) - quiet.second(float(second))
        assert more / LOAD_BYTES_PER_S == pytest.approx(expected.get(second, 0), abs=1e-6), second


def test_a_machine_that_fails_takes_its_containers_along() -> None:
    """No memory, no page I/O; when it is back they begin anew."""
    workload = Workload(Scenario(), generator())
    for second in range(1, 200):
        workload.second(float(second))
    machine = int(np.argmax(workload.slabs_of_device))
    first = int(workload.slabs_of_device[:machine].sum())
    mine = slice(first, first + int(workload.slabs_of_device[machine]))
    assert workload.page_ios[mine].all()
    workload.stop(machine)
    own = workload.second(200.0)
    assert not workload.page_ios[mine].any()
    assert own[machine] < own.mean()
    workload.restart(machine, 200.0)
    own = workload.second(205.0)
    assert own[machine] < own.mean()
    for second in range(206, 400):
        workload.second(float(second))
    assert workload.page_ios[mine].all()
