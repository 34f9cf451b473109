"""Search spaces: what they unroll to, what is shared, and every mistake told in one sentence."""

import itertools
import random
import re
import tomllib
from dataclasses import replace

import pyarrow as pa
import pytest
import tomli_w

from kdtvit_ray.chain import Chain
from kdtvit_ray.data.sources.breakhis import breakhis
from kdtvit_ray.errors import UserError
from kdtvit_ray.recipe import ModelSpec, StageSpec, Training, parse_order
from kdtvit_ray.results.rows import TRIALS
from kdtvit_ray.study.dimensions import Choices, Range
from kdtvit_ray.study.settings import SEEDS
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


def test_each_later_stage_of_the_longest_order_has_a_value_of_its_own():
    text = '[chain]\norder = "40>100"\n[search]\ntemperature = { per_stage = [1, 2, 16] }\n'
    orders = ["40>100>200>400", "400>40"]
    space = read(f"{text}order = {orders}")
    assert [*space.dimensions] == ["temperature.2", "temperature.3", "temperature.4", "order"]
    chosen = {"temperature.2": 1.0, "temperature.3": 2.0, "temperature.4": 16.0}
    for order, expected in zip(orders, ([1, 2, 16], [1]), strict=True):
        stages = space.plan({**chosen, "order": order})
        assert [stage.distillation.temperature for stage in stages[1:]] == expected


OWN = """
[training]
epochs = 4
label_smoothing = 0.1
[training.first]
label_smoothing = 0.0
epochs = 9
[training.later]
layer_decay = 0.75
[models.micro]
weights = "hub"
[search]
training.lr = [1e-3, 2e-3]
training.first.weight_decay = [0.1, 0.2]
training.later.trainable_blocks = ["all", 0]
"""


def test_first_and_later_stages_have_training_settings_of_their_own():
    space = read(OWN)
    first, *later = (
        stage.training
        for stage in space.plan(
            {"training.lr": 2e-3, "training.first.weight_decay": 0.2, "training.later.trainable_blocks": 1}
        )
    )
    base = Training(epochs=4, label_smoothing=0.1)
    assert first == replace(base, lr=2e-3, label_smoothing=0.0, epochs=9, weight_decay=0.2)
    assert later == [replace(base, lr=2e-3, layer_decay=0.75, trainable_blocks=1)] * 3
    baselines = space.baselines()
    assert [each.training for each in baselines["joint"]] == [base]
    assert baselines["per_magnification-100"][0].training == replace(base, label_smoothing=0.0, epochs=9)
    assert [each.training.layer_decay for each in baselines["sequential"]] == [1, 0.75, 0.75, 0.75]


def test_a_number_of_blocks_and_all_of_them_can_be_searched_beside_a_fixed_number():
    fixed = '[models.micro]\nweights = "hub"\n[training]\ntrainable_blocks = 2\n'
    text = fixed + '[training.first]\ntrainable_blocks = "all"\n'
    space = read(text + '[search]\ntraining.later.trainable_blocks = ["all", 1]\ntraining.later.ema = [0, 0.9]')
    assert space.dimensions["training.later.trainable_blocks"] == Choices(("all", 1))
    first, second, *_ = space.plan({"training.later.trainable_blocks": 1, "training.later.ema": 0.9})
    assert (first.training.trainable_blocks, second.training.trainable_blocks) == ("all", 1)
    assert [each.training.trainable_blocks for each in space.baselines()["joint"]] == [2]
    ranged = read('[models.micro]\nweights = "hub"\n[search]\ntraining.layer_decay = { low = 0.5, high = 1 }')
    assert ranged.dimensions["training.layer_decay"] == Range(0.5, 1.0)


def test_settings_of_later_stages_leave_the_first_stages_shared():
    space = read(OWN)
    chosen = {"training.lr": 1e-3, "training.first.weight_decay": 0.1}
    one, two = (space.plan({**chosen, "training.later.trainable_blocks": blocks}) for blocks in ("all", 0))
    assert one[0].key == two[0].key
    assert one[1].key != two[1].key
    other = space.plan({**chosen, "training.first.weight_decay": 0.2, "training.later.trainable_blocks": 0})
    assert {stage.key for stage in other}.isdisjoint(stage.key for stage in two)
    assert len(space.grid()) == 8


def test_a_resolved_space_with_settings_of_single_stages_is_the_same_space():
    space = read(OWN)
    again = Space(tomllib.loads(tomli_w.dumps(space.plain())))
    assert again.plain() == space.plain()
    params = {"training.first.weight_decay": 0.2, "training.later.trainable_blocks": 0}
    assert [each.key for each in again.plan(params)] == [each.key for each in space.plan(params)]
    plain = read(SPACE).plain()["training"]
    assert not {"first", "later"} & set(plain)  # a study without them is written as it always was


REHEARSING = """
[training]
rehearsal_loss = "distillation"
[training.later]
rehearsal = 0.1
[search]
training.later.rehearsal = [0, 0.2, 0.4]
alpha = [0, 0.5]
"""


def test_rehearsal_is_searched_and_what_it_cannot_change_is_one_setting():
    space = read(REHEARSING)
    assert space.rehearses
    assert not read(SPACE).rehearses
    shares = [
        [stage.training.rehearsal for stage in space.plan({"alpha": 0.5, "training.later.rehearsal": share})]
        for share in (0, 0.4)
    ]
    assert shares == [[0, 0, 0, 0], [0, 0.4, 0.4, 0.4]]
    assert len(space.grid()) == 4, "without a teacher rehearsal by distillation changes nothing"
    baselines = space.baselines()
    assert {stage.earlier for name in ("joint", "sequential") for stage in baselines[name]} == {()}
    assert [stage.earlier for stage in baselines["from_scratch_kd"]] == [(), (40,), (40, 100), (40, 100, 200)]
    labels = read("[training]\nrehearsal = 0.2").baselines()
    assert [stage.earlier for stage in labels["sequential"]] == [(), (40,), (40, 100), (40, 100, 200)]
    again = Space(tomllib.loads(tomli_w.dumps(space.plain())))
    assert [each.key for each in again.plan({"alpha": 0.5})] == [each.key for each in space.plan({"alpha": 0.5})]


def test_the_twin_without_rehearsal_is_the_chain_of_a_space_without():
    space = read(REHEARSING)
    params = {"alpha": 0.5, "training.later.rehearsal": 0.4}
    twin = space.without_rehearsal(params)
    plain = read("[search]\nalpha = [0, 0.5]")
    assert [each.key for each in space.plan(twin)] == [each.key for each in plain.plan({"alpha": 0.5})]
    assert space.without_rehearsal({"alpha": 0.5, "training.later.rehearsal": 0}) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[training]\nrehearsal = 0.95", "[training] rehearsal is 0.95; allowed: from 0 to 0.9"),
        (
            "[training.first]\nrehearsal = 0.1",
            "a first stage has no magnifications before it to rehearse; allowed: [tr",
        ),
        (
            "[search]\ntraining.first.rehearsal = [0, 0.1]",
            "[search] training.first.rehearsal is set, but a first stage",
        ),
        ('[training.first]\nrehearsal_loss = "full"', "[training.first] rehearsal_loss is set, but a first stage has"),
        ('[training]\nrehearsal_loss = "labels"', "rehearsal_loss"),
        ('[training]\nrehearsal_loss = "distillation"', "rehearsal is 0, so no image is rehearsed"),
        ('[search]\ntraining.rehearsal_loss = ["full", "distillation"]', "rehearsal is 0, so no image is rehearsed"),
        (
            '[training]\nrehearsal = 0.2\nrehearsal_loss = "distillation"\n[chain]\nalpha = 0',
            "alpha is 0, so there is no teacher to learn the rehearsed images from; allowed: alpha above 0",
        ),
        (
            "[training.later]\nrehearsal = 0.2\n[search]\ntraining.rehearsal = [0, 0.1]",
            "training.rehearsal decides nothing for chains, since later stages have a rehearsal of their own",
        ),
        (
            '[training]\nrehearsal = 0.1\nrehearsal_loss = "distillation"\n[search]\nloss = ["kd", "dkd"]',
            "Distillation loss 'dkd' needs the labels of all images",
        ),
    ],
)
def test_rehearsal_that_cannot_be_is_refused(text, told):
    with pytest.raises(UserError) as error:
        read(text)
    assert told in str(error.value)


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


def test_what_changes_no_weight_is_one_setting():
    probes = "[training]\ntrainable_blocks = 0\n[models.micro]\nweights = 'hub'\n[study]\nbaselines = []\n"
    assert len(read(probes + "[search]\ntraining.layer_decay = [0.5, 1.0]").grid()) == 1
    smoothed = "[study]\nbaselines = []\n[search]\nalpha = [0.5, 1.0]\ntraining.later.label_smoothing = [0, 0.1]"
    assert len(read(smoothed).grid()) == 3


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
        (f"[study]\nseed = {2**63}", f"[study] seed is {2**63}; allowed: from {-(2**63)} to {2**63 - 100}"),
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
        ('[search]\norder = ["40>100", "40 > 100"]', "twice"),
        ('[study]\nsampler = "nsga2"\nstartup = 1', "startup is 1; allowed: 2 or more"),
        ('[search]\nalpha = { low = 0.1, high = 0.3, step = "0.1" }', "alpha.step is '0.1' (text); allowed: a number"),
        ("[search]\nalpha = { low = 0.1, high = 0.3, step = true }", "alpha.step is True (true or false)"),
        ("[search]\nalpha = { low = 0.1, high = 0.3, step = inf }", "alpha.step is "),
        (
            "[search]\ntraining.epochs = { low = 1, high = 3, step = 0.5 }",
            "epochs.step is 0.5 (a number); allowed: a whole number",
        ),
        (
            "[search]\nalpha = { low = 0.1, high = 0.3, step = 1e-30 }",
            "a step of 1e-30; allowed: up to 1,000,000 values",
        ),
        ("[models.micro]\nimage_size = -8", "[models.micro] image_size is -8; allowed: from 8 to 4096"),
        ("[search]\nalpha = { low = 0.5 }", "needs both low and high"),
        ("[search]\nalpha = { low = 0.5, high = 0.1 }", "low < high"),
        ("[search]\nalpha = { low = 0.1, hi = 0.5 }", "did you mean 'high'"),
        ("[search]\nstudent = 3", "allowed: a list of values"),
        ('[search]\nloss = ["kl"]', "allowed: kd, dist, dkd, logit-std"),
        ("search = 3", "allowed: a table [search]"),
        ('[study]\nsampler = "grid"\n[search]\nalpha = { low = 0.1, high = 0.5 }', "is continuous"),
        ('[study]\nsampler = "nsga2"\npruner = "asha"\nobjective_folds = 1', "one objective"),
        ("[training]\nfirst = 3", "[training] first is 3 (a whole number); allowed: a table [training.first]"),
        ("[training.first]\nepoch = 3", "Unknown key in [training.first] 'epoch' (did you mean 'epochs'?)"),
        ("[training.later]\nlr = -1", "[training.later] lr is -1.0; allowed: from 1e-12 to 1000"),
        ('[training.later]\nviews = "d8"', "value of [training.later] views 'd8'"),
        (
            '[training.first]\ncrop = "centre"',
            "[training.first] crop is set, but all stages of a chain have the same crop, because a teacher is",
        ),
        ('[search]\ntraining.later.class_weights = ["none"]', "[search] training.later.class_weights is set, but all"),
        ("[search]\ntraining.first = [1]", "[search] training.first is [1] (a list); allowed: training.first.NAME"),
        ("[search]\ntraining.first.rate = [1]", "Unknown key in [search.training.first] 'rate'; allowed: epochs"),
        (
            "[training.first]\nlr = 1e-3\n[search]\ntraining.lr = [1e-4]\ntraining.later.lr = [1e-4]",
            "[search] training.lr decides nothing for chains, since first and later stages have a lr of their own;",
        ),
        (
            "[training.first]\nepochs = 3\n[search]\ntraining.first.warmup_epochs = [1, 3]",
            "warmup_epochs is 3 and epochs is 3, so the warm-up lasts as long as the stage",
        ),
        ("[training.later]\nepochs = 1", "warmup_epochs is 1 and epochs is 1, so the warm-up"),
        ("[training]\nlayer_decay = 0.2", "[training] layer_decay is 0.2; allowed: from 0.3 to 1"),
        ("[search]\ntraining.head_lr = [0]", "[search] training.head_lr is 0.0; allowed: from 0.01 to 1000"),
        (
            "[training]\ntrainable_blocks = true",
            '[training] trainable_blocks is True (true or false); allowed: "all" or a',
        ),
        ('[training]\ntrainable_blocks = "some"', "is 'some' (text); allowed: \"all\" or a whole number"),
        ("[search]\ntraining.trainable_blocks = [-1]", 'trainable_blocks is -1; allowed: "all", or 0 or more'),
        (
            '[search]\ntraining.trainable_blocks = ["all", 0]\n[models.micro]\nweights = "hub"\n'
            '[chain]\nteacher = "x"\n[models.x]\nname = "micro"',
            "trainable_blocks is 0, but model 'x' (micro) starts from random weights, and what is frozen would",
        ),
        (
            '[models.micro]\nweights = "hub"\n[search]\ntraining.drop_path = [0, 0.1]\n'
            'training.later.trainable_blocks = ["all", 0]',
            "drop_path is 0.1 and trainable_blocks is 0, but what lies before the head is computed once",
        ),
        ("[training]\nmixup = -0.1", "[training] mixup is -0.1; allowed: from 0 to 100"),
        (
            "[search]\ntraining.mixup = [0, 0.2]",
            "mixup is 0.2 in a stage with a teacher, whose outputs are stored and belong to images that are not",
        ),
        ("[training]\nlora_rank = -1", "[training] lora_rank is -1; allowed: from 0 to 1024"),
        (
            '[models.micro]\nweights = "hub"\n[search]\ntraining.lora_rank = [0, 4]\n'
            'training.later.trainable_blocks = ["all", 1]',
            "lora_rank is 4 and trainable_blocks is 1, but updates of a low rank go with all blocks",
        ),
        (
            "[training.later]\nlora_rank = 4",
            "lora_rank is 4, but model 'micro' starts from random weights, and what is frozen would stay random; "
            "allowed: lora_rank = 0, weights",
        ),
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
        (
            "[models.micro]\nargs = { depth = 1, mlp = { ratio = 2 } }",
            "[models.micro] args.mlp holds {'ratio': 2} (a table); allowed: a number, text, true or false, or",
        ),
        ("[models.micro]\nargs = { depths = [1, [2020-01-01]] }", "[models.micro] args.depths holds datetime.date("),
        (
            "[models.micro]\nargs = { num_classes = 3 }",
            "args of model 'micro' has num_classes = 3; allowed instead: head in [chain], and the classes of the",
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
    broken.write_text("# nothing yet\n")
    with pytest.raises(UserError, match=r"broken.toml: it is empty; allowed: tables such as \[chain\]"):
        load_space(str(broken))
    other = broken.rename(tmp_path / "space")
    with pytest.raises(UserError, match=r"/space' is not named like a space; allowed: a path to a \.toml file"):
        load_space(str(other))


def test_lists_in_a_models_arguments_are_tuples_all_the_way_down():
    made = read("[models.micro]\nargs = { depths = [1, [2, 3.5]], wide = true, kind = 'a' }").models["micro"]
    assert made.args == (("depths", (1, (2, 3.5))), ("kind", "a"), ("wide", True))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_record_holds_the_seeds_of_all_repeats(seed):
    repeated = read(f"[study]\nseed = {seed}\nobjective_repeats = 100")
    last = repeated.inner_fold(repeated.parts[-1]).study["seed"]
    assert last == seed + 99
    assert pa.array([seed, last], TRIALS.field("seed").type).to_pylist() == [seed, last]


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


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            "{ per_stage = [0.3], low = 0.1 }",
            "[search] alpha has per_stage and low; allowed: { per_stage = ... }",
        ),
        ("{ per_stage = [0.3], hgih = 0.1 }", "[search] alpha has per_stage and hgih; allowed"),
        ("{ per_stage = 3 }", "[search] alpha.per_stage is 3 (a whole number); allowed: a list of values"),
        ("{ per_stage = [2] }", "[search] alpha.per_stage is 2.0; allowed: from 0 to 1"),
    ],
)
@pytest.mark.parametrize("order", ["40", "40>100"])
def test_all_that_is_said_per_stage_is_checked_whether_or_not_a_stage_uses_it(order, search, said):
    with pytest.raises(UserError, match=re.escape(said)):
        read(f'[chain]\norder = "{order}"\n[search]\nalpha = {search}\n')


def test_what_only_a_searched_joint_would_use_is_not_searched():
    text = "[study]\nbaselines_searched = true\n[training.first]\nlr = 0.1\n[training.later]\nlr = 0.2\n"
    with pytest.raises(UserError, match="nothing is searched for the baseline 'joint' alone"):
        read(text + "[search]\ntraining.lr = [0.1, 0.2]\n")
