"""How many worker groups a cluster has room for."""

import pytest

from kdtvit_ray.study.sweep import groups_that_fit


@pytest.mark.parametrize(
    ("resources", "workers", "gpus", "groups"),
    [
        ({"CPU": 8.0}, 1, 0.0, 8),
        ({"CPU": 7.0}, 2, 0.0, 3),
        ({"CPU": 64.0, "GPU": 8.0}, 1, 1.0, 8),
        ({"CPU": 64.0, "GPU": 8.0}, 4, 1.0, 2),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.25, 4),
        ({"CPU": 64.0, "GPU": 1.0}, 1, 0.1, 10),
        ({"CPU": 64.0, "GPU": 1.0}, 2, 0.25, 2),
        ({"CPU": 64.0}, 1, 1.0, 0),
        ({}, 1, 0.0, 0),
    ],
)
def test_as_many_as_the_resources_allow(resources, workers, gpus, groups):
    assert groups_that_fit(resources, workers, gpus) == groups
