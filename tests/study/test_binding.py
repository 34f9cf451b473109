"""A study bound to its data: what may not change when it is started again, and what its user is told."""

import tomllib

import pytest
import tomli_w
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import save_file

from kdtvit_ray import recipe
from kdtvit_ray.cli import main
from kdtvit_ray.cluster.doctor import doctor
from kdtvit_ray.cluster.options import Options
from kdtvit_ray.data.prepare import prepare
from kdtvit_ray.errors import UserError
from kdtvit_ray.learning.models import build
from kdtvit_ray.paths import StudyFolder
from kdtvit_ray.recipe import RECIPE_VERSION, DataSpec
from kdtvit_ray.results.study_file import read_study
from kdtvit_ray.study.audit import check_space
from kdtvit_ray.study.binding import Bound, as_begun, bind, check_models, cold_note, largest_size, write_study
from kdtvit_ray.study.search import Search
from kdtvit_ray.study.space import Space, load_space, shipped_folder
from tests.learning import toy
from tests.study import made_stages


def bound(text=""):
    return Bound(Space(tomllib.loads(text)), None, {}, {**made_stages.DATA, "fingerprint": "f" * 32})


@pytest.fixture
def folder(tmp_path):
    return StudyFolder(str(tmp_path))


def older(folder, recipe, **training):
    """The study in the folder, as if started with another recipe and other values of [training]."""
    write_study(folder, bound())
    plain = tomllib.loads((folder.local / folder.study).read_text())
    plain["versions"]["recipe"] = recipe
    plain["training"] |= training
    (folder.local / folder.study).write_text(tomli_w.dumps(plain))


def refusal(folder, text=""):
    with pytest.raises(UserError) as caught:
        write_study(folder, bound(text))
    return str(caught.value)


def test_the_same_study_goes_on_with_more_trials(folder):
    write_study(folder, bound())
    write_study(folder, bound("[study]\ntrials = 99"))
    assert tomllib.loads((folder.local / folder.study).read_text())["study"]["trials"] == 99


LINES = ["training.lr = [1e-4, 1e-3]", "temperature = [1, 2]", "alpha = { per_stage = [0.3, 0.6] }", 'order = "all"']


def test_the_lines_of_a_search_may_be_sorted_without_another_suggestion(folder):
    begun = bound("\n".join(["[search]", *LINES]))
    write_study(folder, begun)
    sorted_since = bound("\n".join(["[search]", *sorted(LINES)]))
    assert [*sorted_since.space.dimensions] != [*begun.space.dimensions]
    assert Search(sorted_since.space).suggest() != Search(begun.space).suggest()
    again = as_begun(sorted_since, folder)
    assert [*again.space.dimensions] == [*begun.space.dimensions]
    assert Search(again.space).suggest() == Search(begun.space).suggest()
    write_study(folder, again)
    read = Space(tomllib.loads((folder.local / folder.study).read_text()))
    assert [*read.dimensions] == [*begun.space.dimensions], "the study's own file keeps the order as well"
    with pytest.raises(UserError, match=r"\[search\] student was absent, is \['micro', 'tiny'\]"):
        write_study(folder, as_begun(bound("\n".join(["[search]", *LINES, 'student = ["micro", "tiny"]'])), folder))


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("sweep mine --out s --retry t0001,t0002 --seed 3", "sweep mine --out s --seed 3"),
        ("sweep mine --retry-failed --out s --takeover", "sweep mine --out s"),
        ("sweep mine --out s --retry=t0001", "sweep mine --out s"),
        ("sweep mine --out s", "sweep mine --out s"),
    ],
)
def test_the_command_that_makes_a_study_again_has_nothing_of_one_session(folder, monkeypatch, words, kept):
    monkeypatch.setattr("sys.argv", ["kdtvit-ray", *words.split()])
    write_study(folder, bound())
    assert tomllib.loads((folder.local / folder.study).read_text())["command"] == f"kdtvit-ray {kept}"


TYPO = '[chain]\nstudent = "microo"\n[models.nano]\nname = "micro"\n[search]\nstudent = ["nanoo", "nano"]'


def test_a_model_that_there_is_not_is_told_by_check_doctor_and_sweep_alike(tmp_path):
    (tmp_path / "typo.toml").write_text(TYPO)
    (tmp_path / "near.toml").write_text(TYPO.replace("microo", "micro"))
    told = r"typo\.toml: Unknown model 'microo' \(did you mean 'micro'\?\); allowed: micro, .* \[models\]: nano, nanoo"
    for refuse in (
        lambda name: check_space(name, 0.0, Console(quiet=True)),
        lambda name: doctor(Options(out=""), "", name, Console(quiet=True)),
        lambda name: check_models(load_space(name)),
    ):
        with pytest.raises(UserError, match=told):
            refuse(str(tmp_path / "typo.toml"))
        with pytest.raises(UserError, match=r"Unknown model 'nanoo' \(did you mean 'nano'\?\)"):
            refuse(str(tmp_path / "near.toml"))
    check_models(bound('[models.x]\nname = "vit_tiny_patch16_224"\n[chain]\nstudent = "x"').space)


def test_where_a_study_is_tracked_may_change_and_decides_no_stage(folder):
    write_study(folder, bound())
    tracked = bound('[study]\ntrack = ["mlflow", "tensorboard"]')
    write_study(folder, tracked)
    plain = tomllib.loads((folder.local / folder.study).read_text())
    assert plain["study"]["track"] == ["mlflow", "tensorboard"]
    assert [each.key for each in tracked.space.plan({})] == [each.key for each in bound().space.plan({})]
    write_study(folder, bound())
    assert tomllib.loads((folder.local / folder.study).read_text())["study"]["track"] == []


def test_changed_settings_are_refused_by_name(folder):
    write_study(folder, bound())
    told = refusal(folder, "[training]\nlr = 0.5\n[chain]\nalpha = 0.1")
    assert "was started with other settings: [chain] alpha was 0.5, is 0.1; [training] lr was 0.001, is 0.5; " in told


def test_a_setting_that_came_later_is_no_change_until_it_is_set_to_something_else(folder, monkeypatch):
    """As if `clip_grad` and `objective_folds` had come after the study was started, when nothing was clipped and there
    was one validation part."""
    alike = "[study]\nobjective_folds = 1\n[training]\nclip_grad = 0.0"
    write_study(folder, bound(alike))
    plain = tomllib.loads((folder.local / folder.study).read_text())
    del plain["training"]["clip_grad"], plain["study"]["objective_folds"]
    (folder.local / folder.study).write_text(tomli_w.dumps(plain))
    assert refusal(folder, alike).endswith("is damaged: it has no [study] objective_folds and [training] clip_grad")
    monkeypatch.setitem(recipe.ADDED_LATER, ("training", "clip_grad"), 0.0)
    monkeypatch.setitem(recipe.ADDED_LATER, ("study", "objective_folds"), 1)
    told = refusal(folder)
    assert "[study] objective_folds was 1, is 4" in told
    assert "[training] clip_grad was 0.0, is 1.0" in told
    for space in (Space(plain), Space(read_study(folder))):
        assert (space.training["clip_grad"], space.parts) == (0.0, ())
    write_study(folder, bound(alike))
    write_study(folder, bound(f"{alike}\nema = 0.0"))


KEYS = {
    "folds": ("folds = 3", "folds = 5"),
    "group": ('group = "id"', 'group = "folder"'),
    "stem": ('group = "stem"', 'group = "id"'),
    "validation": ("validation = 0.15", "validation = 0.3"),
    "seed": ("seed = 0", "seed = 1"),
    "fold": ("fold = 1", "fold = 2"),
}


@pytest.mark.parametrize("folds", [1, 4])
@pytest.mark.parametrize("protocol", DataSpec.PROTOCOLS)
@pytest.mark.parametrize("name", KEYS)
def test_what_decides_nothing_of_a_protocol_is_in_no_key_and_may_change(folder, name, protocol, folds):
    made = [
        bound(f'[study]\nobjective_folds = {folds}\n[protocol]\nname = "{protocol}"\n{line}') for line in KEYS[name]
    ]
    spaces = [each.space for each in made]
    keys = [
        [each.plan({})[-1].key for each in ([space.inner_fold(part) for part in space.parts] or [space])]
        for space in spaces
    ]
    refits = [space.refit().plan({})[-1].key for space in spaces]
    official = protocol == "official"
    nothing = {"validation"} if folds > 1 else set()
    nothing |= {"folds", "group"} if official else set()
    assert (keys[0] == keys[1]) == (name in nothing)
    assert (refits[0] == refits[1]) == (name == "validation" or (official and name != "fold"))
    write_study(folder, made[0])
    if name in nothing:
        write_study(folder, made[1])
        assert name in tomllib.loads((folder.local / folder.study).read_text())["protocol"]
    else:
        with pytest.raises(UserError, match=rf"other settings: \[protocol\] {KEYS[name][0].partition(' ')[0]} was "):
            write_study(folder, made[1])


def test_equal_numbers_of_a_models_arguments_are_no_change_and_true_is_no_number(folder):
    text = "[models.micro]\nargs = {{ mlp_ratio = {} }}"
    write_study(folder, bound(text.format("4")))
    write_study(folder, bound(text.format("4.0")))
    assert "[models] micro.args.mlp_ratio was 4.0, is 5" in refusal(folder, text.format("5"))
    (folder.local / folder.study).unlink()
    write_study(folder, bound(text.format("1")))
    assert "[models] micro.args.mlp_ratio was 1, is True" in refusal(folder, text.format("true"))


def test_a_study_of_another_recipe_is_refused_with_what_changed(folder):
    older(folder, "1")
    assert refusal(folder) == (
        f"The study '{folder.shown}' was started by a kdtvit-ray with training recipe 1, and this one has recipe "
        f"{RECIPE_VERSION}, which gives other numbers for the same settings; allowed: a new folder with --out, or the "
        "kdtvit-ray that started it"
    )
    (folder.local / folder.study).unlink()
    older(folder, "1", batch=16)
    assert "; its settings differ as well: [training] batch was 16, is 64; allowed: " in refusal(folder)


def prepared(side, tmp_path):
    images = toy.prepared(images=1, patients=3, size=side)
    for name, pixels in zip(images.table["name"], images.images, strict=True):
        Image.fromarray(pixels).resize((36, 24)).save(tmp_path / f"{name}.png")  # BreakHis's shape
    prepare(tmp_path, tmp_path / "prepared", size=side)
    return str(tmp_path / "prepared")


SPACE = """
[protocol]
folds = 3
[chain]
image_size = 16
"""


SMALLER = """
[search]
student = ["micro", "nano"]
[models.nano]
name = "micro"
image_size = 8
args = { patch_size = 4 }
"""


@pytest.mark.parametrize("more", ["", SMALLER])
def test_images_that_would_be_resized_twice_are_told_in_one_sentence(tmp_path, more):
    found = bind(Space(tomllib.loads(SPACE + more)), prepared(24, tmp_path))
    assert found.data["notes"][1:] == [
        "The images were prepared at 24 px and the models take 16 px, so they are resized twice; "
        "'kdtvit-ray prepare' with --size 16 would resize them once"
    ]


@pytest.mark.parametrize(
    ("side", "more"),
    [
        (16, ""),
        (24, '[training]\ncrop = "centre"'),
        (24, '[search]\ntraining.crop = ["centre"]'),
    ],
)
def test_nothing_is_told_where_images_are_resized_once(tmp_path, side, more):
    notes = bind(Space(tomllib.loads(SPACE + more)), prepared(side, tmp_path)).data["notes"]
    assert notes == ["The images are 36x24 pixels, the originals 700x460: they were resized before"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[training]\ntrainable_blocks = 5", "trainable_blocks is 5, but model 'micro' has 4 blocks; "),
        (
            '[search]\ntraining.trainable_blocks = ["all", 2, 9]',
            "trainable_blocks is 9, but model 'micro' has 4 blocks",
        ),
        ("[search]\ntraining.lora_rank = [0, 500]", "lora_rank is 500, but the attention of model 'micro' has 96 feat"),
    ],
)
def test_training_settings_that_a_model_cannot_have_are_refused_before_anything_starts(tmp_path, text, told):
    made = Space({"chain": {"image_size": 16}}).models["micro"]
    save_file(build(made, 0).state_dict(), tmp_path / "weights.safetensors")
    weights = f'[models.micro]\nweights = "{tmp_path / "weights.safetensors"}"\n'
    with pytest.raises(UserError, match=told):
        bind(Space(tomllib.loads(SPACE + weights + text)), prepared(24, tmp_path))
    bind(Space(tomllib.loads(SPACE + weights + "[training]\ntrainable_blocks = 4")), str(tmp_path / "prepared"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('args = { global_pool = "" }', "space: Model 'micro' at image_size 16 .* yields a tensor"),
        ('name = "vit_small_patch16_dinov3"\nargs = { depth = 1, rope_jitter_coords = 1.5 }', "draws random numbers"),
        ('name = "crossvit_9_240"', r"space: Model 'micro' \(crossvit_9_240\) cannot be run at image_size 16"),
    ],
)
def test_models_that_cannot_be_trained_are_refused_before_anything_starts(tmp_path, text, told):
    with pytest.raises(UserError, match=told):
        bind(Space(tomllib.loads(f"{SPACE}[models.micro]\n{text}")), prepared(24, tmp_path))


def test_images_smaller_than_a_model_takes_are_refused_before_anything_starts(tmp_path):
    space = Space(tomllib.loads(SPACE + "[models.micro]\nimage_size = 32"))
    with pytest.raises(UserError, match=r"image_size 32 of model 'micro' is larger than the prepared images \(24 x 24"):
        bind(space, prepared(24, tmp_path))


def test_check_refuses_what_a_sweep_would_before_it_prints_the_plan_and_needs_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdtvit_ray.learning.models._from_hub", lambda spec: pytest.fail("the hub was asked"))
    data = prepared(24, tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for more, told in (
        (
            'weights = "none.safetensors"',
            r"Weights file '.*none\.safetensors' of model 'nano' \(micro\) does not exist",
        ),
        ('weights = "other.safetensors"', r"other\.safetensors' does not fit model 'nano' \(micro\): it holds another"),
        ("image_size = 32", r"image_size 32 of model 'nano' is larger than the .*'kdtvit-ray prepare --size 32'"),
        ("args = { patch_size = 5 }", r"not a multiple of the patch size 5 of model 'nano' \(micro\)"),
        ('weights = "hub"', ""),
    ):
        text = f'{SPACE}[models.nano]\nname = "micro"\n{more}\n[search]\nstudent = ["nano", "micro"]\n'
        (tmp_path / "my.toml").write_text(text)
        if told:
            with pytest.raises(UserError, match=rf"my\.toml: .*{told}"):
                check_space(str(tmp_path / "my.toml"), 0.0, Console(), data)
        else:
            check_space(str(tmp_path / "my.toml"), 0.0, Console(), data)
        assert ("stages " in capsys.readouterr().out) == (not told)


def test_a_sweep_and_a_chain_say_that_they_wait_for_the_hub(tmp_path, monkeypatch, capsys):
    data, out = prepared(24, tmp_path), tmp_path / "study"
    (tmp_path / "my.toml").write_text(f'{SPACE}[models.micro]\nweights = "hub"\n')

    def away(spec):
        told = capsys.readouterr().out
        assert "Weights of 'micro' come from timm's hub and are fetched" in " ".join(told.split())
        raise UserError("no network")

    monkeypatch.setattr("kdtvit_ray.learning.models._from_hub", away)
    for arguments in (("sweep", tmp_path / "my.toml", "--out", out), ("chain", tmp_path / "my.toml")):
        assert main([*map(str, arguments), "--data", data]) == 2
        assert "no network" in capsys.readouterr().err


def test_a_stage_that_would_train_nothing_is_refused_before_it_starts(tmp_path):
    data = prepared(24, tmp_path)
    text = (
        "[training]\nepochs = 1\nwarmup_epochs = 0\nmin_lr_ratio = {ratio}\n"
        "[chain]\nimage_size = 16\n[search]\ntraining.batch = [2, 10000]"
    )
    with pytest.raises(UserError, match=r"^space: min_lr_ratio is 0, and the stage at 40X has a single step"):
        bind(Space(tomllib.loads(text.format(ratio=0))), data)
    assert bind(Space(tomllib.loads(text.format(ratio=0.1))), data)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('teacher = "small"\nstudent = "vit_small_patch16_224"', "'small' and the student 'vit_small_patch16_224' are"),
        (
            'teacher = "small"\nstudent = "vit_small_patch16_224.augreg_in1k"',
            'write the same name for both: student = "',
        ),
        ('teacher = "micro"\nstudent = "mine"', 'student = "micro"'),
        ('teacher = "small"\nstudent = "small"', ""),
        ('teacher = "small"\nstudent = "tiny"', ""),
        ('teacher = "micro"\nstudent = "mine"\nwarm_start = false', ""),
        ('teacher = "micro"\nstudent = "mine"\norder = "40"', ""),
        ('teacher = "micro"\n[search]\nstudent = ["tiny", "mine"]', 'student = "micro"'),
    ],
)
def test_one_architecture_by_two_names_is_told_since_its_student_starts_cold(text, told, tmp_path, capsys):
    mine = "name = 'vit_tiny_patch16_224'\nargs = { patch_size = 8, embed_dim = 96, depth = 4, num_heads = 3 }"
    text = f"[models.mine]\n{mine}\n[study]\nbaselines = []\n[chain]\nimage_size = 64\n{text}"
    space = Space(tomllib.loads(text))
    assert told in cold_note(space)
    assert bool(cold_note(space)) == bool(told)
    (tmp_path / "my.toml").write_text(text)
    check_space(str(tmp_path / "my.toml"), 0.0, Console())
    assert ("one architecture by two names" in " ".join(capsys.readouterr().out.split())) == bool(told)


def test_a_models_table_without_a_name_says_so():
    text = '[models.nano]\nweights = "hub"\n[chain]\nstudent = "nano"'
    with pytest.raises(UserError) as refused:
        check_models(bound(text).space)
    assert str(refused.value).startswith(
        "space: [models.nano] has no other name, so 'nano' itself is the architecture, and there is none of that name; "
        "set name = ... in that table; allowed: micro, "
    )


@pytest.mark.parametrize("name", sorted(each.stem for each in shipped_folder().glob("*.toml")))
def test_a_shipped_space_says_which_prepared_size_fits_it(name):
    head = (shipped_folder() / f"{name}.toml").read_text().partition("[study]")[0]
    assert f"--size {largest_size(load_space(name))}" in head
