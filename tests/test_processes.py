"""Training by several processes, killed and restored: see tests/processes.py."""

from tests import processes


def test_other_processes_go_on_where_those_that_were_killed_were() -> None:
    reference, lonely, outcomes, statistics = processes.drama([2, 4], devices=2)
    assert [group.task.processes for group in outcomes] == [2, 4, 2, 1]
    for group in outcomes:
        assert max(processes.distances(reference, group)) < 1e-5, group
        assert group.rows == {processes.BATCH_SIZE // group.task.processes}
        (whole,) = reference.nbytes
        assert max(group.nbytes) < 1.05 * whole / group.task.processes
    assert statistics < 1e-5
    steps = {step: loss for group in outcomes for step, loss in group.losses.items()}
    assert sorted(steps) == sorted(reference.losses)
    assert reference.losses[0] > 1.1 * reference.losses[max(steps)]
    for group in [lonely, *outcomes[:-1]]:
        assert group.seconds < processes.ENDED_SECONDS, group
