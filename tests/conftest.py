"""What all tests share: no example of Hypothesis is too slow, since how long it takes says how busy the machine is; a
node's cache of their own; and a small real study, of a prepared set of a few images and a space whose stages take a
second."""

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

MODELS = """
[models.big]
name = "micro"
args = { depth = 2, embed_dim = 24, num_heads = 2, patch_size = 4 }
[models.small]
name = "micro"
args = { depth = 2, embed_dim = 16, num_heads = 2, patch_size = 4 }
"""
"""Models of a stage that takes a second, for the spaces of small studies."""

SPACE = f"""
[study]
trials = 5
objective_folds = 1
lag = 2
startup = 2
seed = 7
baselines = ["joint", "sequential"]
[protocol]
folds = 3
validation = 0.3
[chain]
teacher = "big"
student = "small"
image_size = 16
{MODELS}
[training]
epochs = 2
batch = 24
drop_path = 0.1
[search]
temperature = [1, 4]
alpha = [0.3, 0.9]
order = ["40>100>200>400", "400>200>100>40"]
student = ["small", "big"]
"""


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The cache of this node, for tests and the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDTVIT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="class")
def unrendered():
    """Figures are painted and stay empty files: two thirds of a report's time, for tests that look at its words."""
    from kdtvit_ray.report import style

    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72" width="72pt" height="72pt"></svg>'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "_rendered", lambda canvas: (empty, b""))
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A folder of 48 image files in BreakHis's shape, named like BreakHis's."""
    from PIL import Image

    from tests.learning import toy

    folder = tmp_path_factory.mktemp("images")
    made = toy.prepared(images=2, patients=6, size=24)
    for name, pixels in zip(made.table["name"], made.images, strict=True):
        wide = Image.fromarray(pixels).resize((36, 24), Image.Resampling.NEAREST)  # BreakHis's shape
        wide.save(folder / f"{name}.png")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory, images):
    """The prepared set of `images`, in pixels of 24 x 24."""
    from kdtvit_ray.data.prepare import prepare

    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(images, out, size=24, aspect="squash")
    return out


@pytest.fixture(scope="session")
def space(tmp_path_factory):
    path = tmp_path_factory.mktemp("space") / "small.toml"
    path.write_text(SPACE)
    return path
