"""The files for Ray's cluster launcher against the schema in Ray's own wheel."""

import copy
import json
import shlex
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from kdtvit_ray import __version__
from tests.clusters.commands import CLUSTERS

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
FILES = {path.name: yaml.safe_load(path.read_text()) for path in sorted((CLUSTERS / "ray_up").glob("*.yaml"))}
PREEMPTIBLE = {
    "aws.yaml": lambda node: node.get("InstanceMarketOptions") == {"MarketType": "spot"},
    "gcp.yaml": lambda node: node.get("scheduling", {}).get("preemptible") is True,
}
RIGHTS = {"aws.yaml": "IamInstanceProfile", "gcp.yaml": "serviceAccounts"}


def check(config):
    """The file itself for unknown keys, since Ray fills in its defaults; then as `ray up` does it."""
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_one_that_ray_up_takes_and_no_default_of_rays_comes_into_it(name):
    prepared = check(FILES[name])
    assert prepared["docker"]["image"] == f"REGISTRY/kdtvit-ray:{__version__}"
    # Ray's defaults install a nightly wheel
    assert "ray-wheels" not in json.dumps(prepared)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.update(idle_timeout=5),
        lambda config: config["docker"].update(picture="x"),
        lambda config: config["available_node_types"]["gpu"].update(spot=True),
        lambda config: config["available_node_types"]["gpu"].update(max_workers="8"),
    ],
)
def test_a_misspelt_key_or_a_wrong_value_is_found(name, spoil):
    config = copy.deepcopy(FILES[name])
    spoil(config)
    with pytest.raises(jsonschema.ValidationError):
        check(config)


@pytest.mark.parametrize("name", FILES)
def test_the_head_has_no_gpu_and_the_workers_are_preemptible_with_rights_to_the_bucket(name):
    config = FILES[name]
    head, gpu = (config["available_node_types"][each]["node_config"] for each in ("head", "gpu"))
    assert config["head_node_type"] == "head"
    assert not PREEMPTIBLE[name](head)
    assert PREEMPTIBLE[name](gpu)
    assert gpu[RIGHTS[name]]
    assert config["available_node_types"]["gpu"]["min_workers"] == 0
    (start,) = (shlex.split(each) for each in config["head_start_ray_commands"] if "--head" in each)
    assert {"--num-gpus=0", "--autoscaling-config=~/ray_bootstrap_config.yaml"} <= set(start)
