"""Search spaces: what they unroll to, what is shared, and every mistake told in one sentence."""

import itertools
import random
import tomllib

import pytest
import tomli_w

from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import Chain, ModelSpec, StageSpec, Training, parse_order
from kdtvit_ray.study.dimensions import Choices, Range
from kdtvit_ray.study.space import Space, load_space, shipped_folder

MAGNIFICATIONS = breakhis().magnifications
SPACE = """
[study]
trials = 12
lag = 4

[chain]
teacher = "tiny"
student = "micro"
image_size = 64

[models.tiny]
name = "vit_tiny_patch16_224"
args = { patch_size = 8 }

[search]
temperature = [2, 4, 8]
alpha = { per_stage = [0.2, 0.5] }
order = "all"
student = ["micro", "tiny"]
training.lr = { low = 1e-4, high = 1e-2, log = true }
"""


def read(text: str) -> Space:
    return Space(tomllib.loads(text), source="my.toml")


def test_dimensions_of_a_space():
    space = read(SPACE)
    assert space.dimensions["temperature"] == Choices((2.0, 4.0, 8.0))
    assert [name for name in space.dimensions if name.startswith("alpha")] == ["alpha.2", "alpha.3", "alpha.4"]
    assert len(space.dimensions["order"].values) == 24
    assert space.dimensions["training.lr"] == Range(1e-4, 1e-2, log=True)


def test_a_suggestion_unrolls_to_a_chain_of_stages():
    params = {
        "temperature": 8.0,
        "alpha.2": 0.2,
        "alpha.3": 0.5,
        "alpha.4": 0.2,
        "order": "400>40>200>100",
        "student": "tiny",
        "training.lr": 5e-4,
    }
    stages = read(SPACE).plan(params)
    assert [stage.magnifications for stage in stages] == [(400,), (40,), (200,), (100,)]
    assert stages[0].distillation is None
    assert stages[0].parent is None
    assert [stage.distillation.alpha for stage in stages[1:]] == [0.2, 0.5, 0.2]
    assert [stage.parent for stage in stages[1:]] == [stage.key for stage in stages[:-1]]
    assert all(stage.warm for stage in stages[1:])
    assert all(stage.training.lr == 5e-4 for stage in stages)
    assert stages[0].model.args == (("patch_size", 8),)


def test_a_student_of_another_architecture_starts_from_its_own_weights():
    stages = read(SPACE).plan({"student": "micro"})
    assert [stage.warm for stage in stages] == [False, False, True, True]
    assert [stage.model.name for stage in stages] == ["vit_tiny_patch16_224", "micro", "micro", "micro"]


def test_chains_share_the_stages_that_they_begin_with():
    space = read(SPACE)
    base = {"order": "40>100>200>400", "student": "tiny", "alpha.2": 0.2, "alpha.3": 0.2, "alpha.4": 0.2}
    one = space.plan(base)
    late = space.plan({**base, "alpha.4": 0.5})
    assert [a.key == b.key for a, b in zip(one, late, strict=True)] == [True, True, True, False]
    other = space.plan({**base, "order": "40>200>100>400"})
    assert [a.key == b.key for a, b in zip(one, other, strict=True)] == [True, False, False, False]


def test_without_a_teacher_term_temperature_does_not_split_stages():
    chain = Chain(MAGNIFICATIONS, ModelSpec(), ModelSpec(), (2.0,) * 3, (0.0,) * 3)
    other = Chain(MAGNIFICATIONS, ModelSpec(), ModelSpec(), (8.0,) * 3, (0.0,) * 3)
    assert [s.key for s in chain.stages()] == [s.key for s in other.stages()]
    cold = Chain(MAGNIFICATIONS, ModelSpec(), ModelSpec(), (2.0,) * 3, (0.0,) * 3, warm_start=False)
    assert all(stage.parent is None for stage in cold.stages())


def test_everything_that_decides_a_result_is_in_the_key_and_paths_are_not():
    spec = StageSpec((40,), ModelSpec(weights="/a/file", digest="d1"))
    assert spec.key == StageSpec((40,), ModelSpec(weights="/b/file", digest="d1")).key
    others = [
        StageSpec((100,), spec.model),
        StageSpec((40,), ModelSpec(digest="d2")),
        StageSpec((40,), spec.model, seed=1),
        StageSpec((40,), spec.model, Training(epochs=11)),
    ]
    assert len({spec.key, *(other.key for other in others)}) == 5


def test_baselines_are_chains_and_share_stages_among_themselves():
    made = read(SPACE).baselines()
    assert set(made) == {*(f"per_magnification-{m}" for m in MAGNIFICATIONS), "joint", "sequential", "from_scratch_kd"}
    assert [s.magnifications for s in made["joint"]] == [MAGNIFICATIONS]
    assert all(stage.distillation is None for stage in made["sequential"])
    assert made["sequential"][0].key == made["per_magnification-40"][0].key
    assert not any(stage.warm for stage in made["from_scratch_kd"])
    assert all(stage.distillation for stage in made["from_scratch_kd"][1:])


def test_the_resolved_space_reads_back_as_the_same_space():
    space = read(SPACE)
    again = Space(tomllib.loads(tomli_w.dumps(space.plain())))
    assert again.dimensions == space.dimensions
    for params in itertools.islice(space.samples(random.Random(0)), 20):
        assert [s.key for s in again.plan(params)] == [s.key for s in space.plan(params)]


def test_a_grid_is_every_combination_once():
    grid = read(
        '[study]\nsampler = "grid"\n[search]\ntemperature = [1, 2]\nalpha = { low = 0.1, high = 0.5, step = 0.2 }'
    )
    points = grid.grid()
    assert len(points) == 6
    assert {(p["temperature"], round(p["alpha"], 6)) for p in points} == set(itertools.product((1, 2), (0.1, 0.3, 0.5)))


def test_order_first_takes_each_magnification_first():
    space = read('[search]\norder = "first"')
    assert [parse_order(each)[0] for each in space.dimensions["order"].values] == list(MAGNIFICATIONS)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[sarch]\n", "did you mean 'search'"),
        ("[training]\nepoch = 3", "did you mean 'epochs'"),
        ("[search]\ntemprature = [1]", "did you mean 'temperature'"),
        ("[search]\ntraining.learning_rate = [1]", "allowed: epochs"),
        ('[study]\nsampler = "tpee"', "did you mean 'tpe'"),
        ('[study]\nbaselines = ["jiont"]', "did you mean 'joint'"),
        ('[study]\ntrack = ["mlflwo"]', "did you mean 'mlflow'"),
        ('[study]\ntrials = "many"', "[study] trials is 'many' (text); allowed: a whole number"),
        ("[chain]\nalpha = 1.5", "[chain] alpha is 1.5; allowed: from 0 to 1"),
        ("[chain]\ntemperature = 0", "[chain] temperature is 0"),
        ("[chain]\nwarm_start = 1", "allowed: true or false"),
        ('[chain]\norder = "40>40"', "not a sequence of different magnifications"),
        ('[search]\norder = "all"\n[chain]\norder = "1>2>3>4>5>6>7>8"', "8 magnifications have 40,320 orders"),
        ('[chain]\nloss = "dkd"\nhead = "binary"', "Distillation loss 'dkd' cannot be used with two classes"),
        ('[chain]\nhead = "binary"\n[search]\nloss = ["kd", "dist"]', "'dist' cannot be used with two classes"),
        ('[chain]\nloss = "dkd"\nhead = "binary"\nalpha = 0.0\n[search]\nalpha = [0.0, 0.5]', "'dkd' cannot be used"),
        ("[chain]\nimage_size = 60", "image_size 60 is not a multiple of the patch size 8 of model 'micro'"),
        ('[search]\nstudent = ["micro", "vit_tiny_patch14_x"]', "not a multiple of the patch size 14"),
        (
            '[training]\ncrop = "centre"\n[chain]\nteacher = "t"\n[models.t]\nname = "micro"\nimage_size = 32',
            "With crop = 'centre' a teacher at image_size 32",
        ),
        ('[search]\norder = "any"', 'allowed: "all", "first"'),
        ("[search]\nalpha = []", "empty list"),
        ("[search]\nalpha = [0.5, 0.5]", "twice"),
        ("[search]\nalpha = { low = 0.5 }", "needs both low and high"),
        ("[search]\nalpha = { low = 0.5, high = 0.1 }", "low < high"),
        ("[search]\nalpha = { low = 0.1, hi = 0.5 }", "did you mean 'high'"),
        ("[search]\nstudent = 3", "allowed: a list of values"),
        ('[search]\nloss = ["kl"]', "allowed: kd, dist, dkd, logit-std"),
        ("search = 3", "allowed: a table [search]"),
        ('[study]\nsampler = "grid"\n[search]\nalpha = { low = 0.1, high = 0.5 }', "is continuous"),
        ('[study]\nsampler = "nsga2"\npruner = "asha"\nobjective_folds = 1', "one objective"),
        ("[training]\nbatch = 0", "[training] batch is 0; allowed: 1 or more"),
        ("[protocol]\nfold = 6", "[protocol] fold is 6; allowed: from 1 to 3"),
        (
            "[training]\nepochs = 2\nwarmup_epochs = 2",
            "[training] warmup_epochs is 2 and [training] epochs is 2, so the warm-up lasts as long as the stage and "
            "the learning rate never decays; allowed: warmup_epochs below epochs (here below 2)",
        ),
        (
            "[training]\nwarmup_epochs = 3\n[search]\ntraining.epochs = [20, 3, 8]",
            "[training] warmup_epochs is 3 and [search] training.epochs is 3,",
        ),
        (
            "[training]\nepochs = 4\n[search]\ntraining.warmup_epochs = { low = 0.5, high = 5, step = 1.75 }",
            "[search] training.warmup_epochs is 4 and [training] epochs is 4,",
        ),
        (
            "[search]\ntraining.epochs = { low = 2, high = 64, log = true }\ntraining.warmup_epochs = [0, 1, 2.5]",
            "[search] training.warmup_epochs is 2.5 and [search] training.epochs is 2,",
        ),
        (  # the fixed values are the baselines'
            "[training]\nepochs = 1\nwarmup_epochs = 1\n[search]\ntraining.epochs = [5]",
            "[training] warmup_epochs is 1 and [training] epochs is 1,",
        ),
        ('[training]\nstain = "hedd"', "did you mean 'hed'"),
        ("[training]\nstain_strength = 0", "[training] stain_strength is 0.0; allowed: from 0.001 to 1"),
        ("[training]\nzoom = 1", "[training] zoom is 1.0; allowed: from 0 to 0.9"),
        ("[search]\ntraining.variants = [0, 2]", "[search] training.variants is 0; allowed: from 1 to 1000"),
        (
            "[training]\nvariants = 4",
            "[training] variants is 4, but stain is 'none' and zoom is 0, so every variant would be the unchanged "
            "image; allowed: variants = 1, stain = 'hed' or 'jitter', or zoom above 0",
        ),
        (
            '[search]\ntraining.stain = ["none", "jitter"]',
            "stain is 'jitter', but variants is 1, and the first variant is the unchanged image, so nothing would "
            "change; allowed: variants of 2 or more, or stain = 'none' and zoom = 0",
        ),
        (
            "[training]\nzoom = 0.2\nvariants = 2\n[search]\ntraining.stain_strength = [0.05, 0.2]",
            "stain_strength is 0.2, but stain is 'none', so it changes nothing; "
            "allowed: stain = 'hed' or 'jitter', or stain_strength = 0.05",
        ),
        (  # the default is told by its name as well
            "[training]\nepochs = 1",
            "[training] warmup_epochs is 1 and [training] epochs is 1,",
        ),
    ],
)
def test_a_mistake_is_one_sentence_that_names_file_key_and_what_is_allowed(text, told):
    with pytest.raises(UserError) as caught:
        read(text)
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert told in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    [
        "[training]\nepochs = 1\nwarmup_epochs = 0.5",
        "[search]\ntraining.epochs = [2, 30]",
        "[training]\nepochs = 4\n[search]\ntraining.warmup_epochs = { low = 0.5, high = 4.2, step = 2 }",
        "[training]\nepochs = 3\nwarmup_epochs = 2.9",
    ],
)
def test_a_warm_up_that_ends_before_every_stage_is_allowed(text):
    assert read(text)


def test_a_trial_in_which_variants_change_nothing_is_one_without_them():
    """So that images with and without a stain can be compared in one study."""
    space = read(
        "[training]\nvariants = 4\nstain_strength = 0.1\n"
        '[search]\ntraining.stain = ["none", "hed"]\ntraining.zoom = [0.0, 0.2]'
    )
    plain, zoomed, stained = (
        space.plan({"training.stain": stain, "training.zoom": zoom})[0]
        for stain, zoom in (("none", 0.0), ("none", 0.2), ("hed", 0.0))
    )
    assert plain == read("").plan({})[0]
    assert (zoomed.training.variants, zoomed.training.stain_strength) == (4, 0.05)
    assert (stained.training.variants, stained.training.stain_strength) == (4, 0.1)
    again = Space(tomllib.loads(tomli_w.dumps(space.plain())))
    assert again.plan({"training.stain": "hed", "training.zoom": 0.0})[0] == stained
    searched = read('[training]\nstain = "hed"\n[search]\ntraining.variants = [1, 4]')
    assert searched.plan({"training.variants": 1})[0] == plain
    assert searched.plan({"training.variants": 4})[0].training.stain == "hed"
    assert len(searched.grid()) == 2


def test_files_that_are_not_there_or_no_toml_are_told(tmp_path):
    with pytest.raises(UserError, match="did you mean 'demo'"):
        load_space("dmo")
    with pytest.raises(UserError, match="Cannot read the space"):
        load_space(str(tmp_path / "none.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[study\n")
    with pytest.raises(UserError, match="not valid TOML"):
        load_space(str(broken))


@pytest.mark.parametrize("name", sorted(each.stem for each in shipped_folder().glob("*.toml")))
def test_every_shipped_space_unrolls(name):
    space = load_space(name)
    for params in itertools.islice(space.samples(random.Random(0)), 50):
        assert space.plan(params)
    assert space.baselines()


def test_stages_are_told_by_the_labels_of_the_space():
    space = read(
        SPACE.replace("[models.tiny]", '[models.nano]\nname = "micro"\nargs = { depth = 2 }\n\n[models.tiny]').replace(
            'student = ["micro", "tiny"]', 'student = ["nano", "tiny"]'
        )
    )
    plan = space.plan({"student": "nano"})
    assert [space.label(stage.model) for stage in plan] == ["tiny", "nano", "nano", "nano"]
    assert space.label(ModelSpec("vit_base_patch16_224", 224)) == "vit_base_patch16_224"
