"""How many worker groups a cluster has room for."""

import pytest

from kdtvit_ray.errors import UserError
from kdtvit_ray.study.groups import groups_that_fit
from kdtvit_ray.study.options import Options


@pytest.mark.parametrize(
    ("resources", "workers", "gpus", "groups"),
    [
        ({"CPU": 8.0}, 1, 0.0, 8),
        ({"CPU": 7.0}, 2, 0.0, 3),
        ({"CPU": 64.0, "GPU": 8.0}, 1, 1.0, 8),
        ({"CPU": 64.0, "GPU": 8.0}, 4, 1.0, 2),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.25, 4),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.1, 10),
        ({"CPU": 4.0, "GPU": 1.0}, 1, 0.1, 4),
        ({"CPU": 4.0, "GPU": 8.0}, 2, 1.0, 2),
        ({"CPU": 64.0}, 1, 1.0, 0),
        ({}, 1, 0.0, 0),
    ],
)
def test_as_many_as_the_resources_allow(resources, workers, gpus, groups):
    assert groups_that_fit(resources, workers, gpus) == groups


@pytest.mark.parametrize(
    ("workers", "gpus", "said"),
    [
        (2, 0.25, "--gpus-per-worker 0.25 with --workers 2: workers of one group cannot share a GPU"),
        (1, 1.5, "--gpus-per-worker is 1.5; allowed: a share below 1"),
    ],
)
def test_shares_of_gpus_that_cannot_work_are_refused(workers, gpus, said):
    with pytest.raises(UserError, match=said):
        Options(out="study", data="data", workers=workers, gpus_per_worker=gpus)


@pytest.mark.parametrize(("workers", "gpus"), [(1, 0.25), (4, 1.0), (1, 2.0), (4, -1.0), (4, 0.0)])
def test_other_shares_are_taken(workers, gpus):
    assert Options(out="study", data="data", workers=workers, gpus_per_worker=gpus).gpus_per_worker == gpus
