import math

import pytest
import torch
import torch.nn.functional as F
from timm.task.distillation import LogitDistillationTask
from torch import nn

from kdtvit_ray.learning import losses
from kdtvit_ray.learning.evaluate import softmax
from kdtvit_ray.recipe import Distillation
from tests.learning.operations import Operations


@pytest.fixture
def logits():
    random = torch.Generator().manual_seed(3)
    student = torch.randn(6, 8, generator=random, dtype=torch.float64) * 2
    teacher = torch.randn(6, 8, generator=random, dtype=torch.float64) * 2
    return student, teacher, torch.tensor([0, 3, 7, 7, 2, 5])


def test_kd_by_hand():
    student, teacher, T = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, -1.0]]), 2.0
    p = 1 / (1 + math.exp(-4 / T))  # the teacher's first class
    q = 1 / (1 + math.exp(-1 / T))
    by_hand = T**2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert losses.kd(student, teacher, T).tolist() == pytest.approx([by_hand])
    assert losses.kd(teacher, student, T).item() != pytest.approx(by_hand, rel=0.01)  # KL has a direction


@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 0.3), (4.0, 0.7)])
def test_total_is_timms_distillation_task(logits, temperature, alpha):
    student, teacher, labels = (each.float() if each.is_floating_point() else each for each in logits)

    class Given(nn.Module):
        pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        num_classes, in_chans = 8, 3

        def __init__(self, outputs):
            super().__init__()
            self.outputs = outputs

        def forward(self, _):
            return self.outputs

    task = LogitDistillationTask(
        Given(student),
        Given(teacher),
        nn.CrossEntropyLoss(),
        task_loss_weight=1 - alpha,
        temperature=temperature,
        verbose=False,
    )
    theirs = task(torch.zeros(6, 3, 2, 2), labels)
    objective = losses.Objective(Distillation(temperature, alpha), torch.ones(8), 0.0)
    total, hard, soft = objective(student, teacher, labels, batch=6)
    assert total.item() == pytest.approx(theirs["loss"].item(), rel=1e-5)
    assert hard.item() == pytest.approx(theirs["task_loss"].item(), rel=1e-5)
    assert total.item() == pytest.approx((1 - alpha) * hard.item() + alpha * soft.item(), rel=1e-6)


def test_alpha_weighs_the_distillation_term(logits):
    student, teacher, labels = logits
    ones = torch.ones(8, dtype=torch.float64)
    for alpha, wanted in ((0.0, F.cross_entropy(student, labels)), (1.0, losses.kd(student, teacher, 2.0).mean())):
        total, _, _ = losses.Objective(Distillation(2.0, alpha), ones, 0.0)(student, teacher, labels, 6)
        assert total.item() == pytest.approx(wanted.item())


def test_without_a_teacher_it_is_cross_entropy_alone(logits):
    student, _, labels = logits
    total, hard, soft = losses.Objective(None, torch.ones(8), 0.1)(student, None, labels, 6)
    assert total.item() == hard.item() == pytest.approx(F.cross_entropy(student, labels, label_smoothing=0.1).item())
    assert soft.item() == 0


def test_t_squared_keeps_the_gradient_of_a_high_temperature_alive(logits):
    student, teacher, _ = logits
    for T in (20.0, 200.0):  # Hinton's limit: T^2 * KL tends to half the squared distance of the centred logits / C
        centred = (teacher - teacher.mean(1, keepdim=True)) - (student - student.mean(1, keepdim=True))
        limit = (centred**2).sum(1) / (2 * 8)
        assert losses.kd(student, teacher, T).tolist() == pytest.approx(limit.tolist(), rel=8 / T)


def test_class_weights_multiply_each_images_term_and_divide_by_the_batch(logits):
    student, _, labels = logits
    weights = torch.arange(1.0, 9.0, dtype=torch.float64)
    found = losses.cross_entropy(student, labels, weights, 0.2)
    plain = student.log_softmax(1)
    for index, label in enumerate(labels.tolist()):
        by_hand = -(0.8 * plain[index, label] + 0.2 * plain[index].mean()) * (label + 1)
        assert found[index].item() == pytest.approx(by_hand.item())
    halves = losses.Objective(None, weights, 0.2)
    whole = halves(student, None, labels, 6)[0]
    parts = halves(student[:2], None, labels[:2], 6)[0] + halves(student[2:], None, labels[2:], 6)[0]
    assert whole.item() == pytest.approx(parts.item())
    assert whole.item() == pytest.approx(found.mean().item())


def test_balanced_weights_give_every_class_the_same_say_and_have_mean_one():
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = losses.balanced_weights(labels, 5)
    assert weights[labels].mean().item() == pytest.approx(1)
    assert (weights[:2] * torch.tensor([6, 3])).tolist() == pytest.approx([weights[3].item()] * 2)
    assert weights[2] == weights[4] == 0


def test_binary_weights_give_both_sides_the_same_say_and_subtypes_their_shares():
    counts = torch.tensor([2, 3, 0, 1, 12, 2, 4, 0])
    labels = torch.repeat_interleave(torch.arange(8), counts)
    weights = losses.class_weights("balanced-binary", labels, 8, 4)
    say = weights * counts
    assert weights[labels].mean().item() == pytest.approx(1)
    assert say[:4].sum().item() == pytest.approx(say[4:].sum().item())
    assert (say[:4] / say[:4].sum()).tolist() == pytest.approx([2 / 6, 3 / 6, 0, 1 / 6])
    assert (say[4:] / say[4:].sum()).tolist() == pytest.approx([12 / 18, 2 / 18, 4 / 18, 0])
    two = (labels >= 4).long()
    assert losses.class_weights("balanced-binary", two, 2, 1).tolist() == losses.balanced_weights(two, 2).tolist()


@pytest.mark.parametrize("choice", ["balanced-binary", "balanced", "balanced-corrected"])
def test_an_image_counts_as_often_as_it_is_shown(choice):
    """As if it were that many images."""
    labels, shown = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([1.0, 3.0, 2.0, 5.0, 1.0, 2.0])
    found = losses.class_weights(choice, labels, 4, 2, shown)
    often = torch.repeat_interleave(labels, shown.long())
    assert found.tolist() == pytest.approx(losses.class_weights(choice, often, 4, 2).tolist())
    assert found.tolist() != pytest.approx(losses.class_weights(choice, labels, 4, 2).tolist())


def test_offsets_undo_the_weights_of_a_model_that_learned_all_there_is():
    random = torch.Generator().manual_seed(1)
    truth = torch.randn(50, 8, generator=random, dtype=torch.float64).softmax(1)  # p(class | image)
    weights = torch.tensor([0.5, 2.0, 1.0, 4.0, 0.1, 1.5, 3.0, 1.0], dtype=torch.float64)
    learned = (truth * weights).log()  # where the weighted cross-entropy is least, up to a constant
    found = torch.from_numpy(softmax(learned.numpy(), losses.logit_offsets("balanced-corrected", weights)))
    assert torch.allclose(found, truth, rtol=1e-10)
    for choice in ("none", "balanced", "balanced-binary"):
        assert losses.logit_offsets(choice, weights).tolist() == [0.0] * 8


def test_a_class_without_training_images_keeps_a_finite_probability():
    weights = losses.class_weights("balanced-corrected", torch.tensor([0, 0, 1]), 3, 1)
    assert weights[2] == 0
    assert losses.logit_offsets("balanced-corrected", weights)[2] == 0


def test_dkd_with_the_teachers_own_weight_is_kd(logits):
    student, teacher, labels = logits
    T = 3.0
    beta = 1 - (teacher / T).softmax(1).gather(1, labels[:, None])[:, 0]
    split = losses.dkd(student, teacher, labels, T, beta=beta)
    assert split.tolist() == pytest.approx(losses.kd(student, teacher, T).tolist())
    more = losses.dkd(student, teacher, labels, T)
    assert (more > losses.dkd(student, teacher, labels, T, beta=1.0)).all()


def test_dkd_by_hand_has_its_authors_weight():
    """Softened scores of 4 : 2 : 1 with the teacher and 1 : 1 : 1 with the student; the first class is the label."""
    T = 2.0
    teacher, student = T * torch.tensor([[4.0, 2.0, 1.0]]).log(), torch.zeros(1, 3)
    target = 4 / 7 * math.log((4 / 7) / (1 / 3)) + 3 / 7 * math.log((3 / 7) / (2 / 3))
    other = 2 / 3 * math.log((2 / 3) / (1 / 2)) + 1 / 3 * math.log((1 / 3) / (1 / 2))
    found = losses.Objective(Distillation(T, 1.0, "dkd"), torch.ones(3), 0.0)(student, teacher, torch.tensor([0]), 1)
    assert found[0].item() == pytest.approx(T**2 * (target + 8 * other), rel=1e-5)


def test_logit_std_sees_shape_only(logits):
    student, teacher, _ = logits
    assert losses.logit_std(teacher * 5 + 3, teacher, 2.0).tolist() == pytest.approx([0] * 6, abs=1e-9)
    found = losses.logit_std(student, teacher, 2.0)
    assert losses.logit_std(student * 0.1 - 9, teacher, 2.0).tolist() == pytest.approx(found.tolist(), rel=1e-4)
    standard = [(each - each.mean(1, keepdim=True)) / each.std(1, keepdim=True) for each in (student, teacher)]
    assert found.tolist() == pytest.approx(losses.kd(*standard, 2.0).tolist(), rel=1e-4)


def test_dist_is_correlation_over_classes_and_over_the_batch(logits):
    student, teacher, labels = logits
    T = 2.0
    p, q = ((each / T).softmax(1) for each in (student, teacher))
    rows = [torch.corrcoef(torch.stack((p[i], q[i])))[0, 1].item() for i in range(6)]
    columns = [torch.corrcoef(torch.stack((p[:, c], q[:, c])))[0, 1].item() for c in range(8)]
    inter, intra = losses.relations(student, teacher, T)
    assert inter.tolist() == pytest.approx([T**2 * (1 - each) for each in rows], rel=1e-5)
    assert intra.tolist() == pytest.approx([T**2 * (1 - each) for each in columns], rel=1e-5)
    _, _, soft = losses.Objective(Distillation(T, 0.5, "dist"), torch.ones(8), 0.0)(student, teacher, labels, 6)
    assert soft.item() == pytest.approx(inter.mean().item() + intra.mean().item())


@pytest.mark.parametrize("loss", Distillation.LOSSES)
def test_every_loss_is_zero_and_flat_when_the_student_is_the_teacher(logits, loss):
    student, _, labels = logits
    student = student.clone().requires_grad_()
    objective = losses.Objective(Distillation(2.0, 1.0, loss), torch.ones(8), 0.0)
    total, _, _ = objective(student, student.detach(), labels, 6)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("loss", Distillation.LOSSES)
def test_with_alpha_1_smoothed_labels_move_nothing(logits, loss):
    student, teacher, labels = logits
    gradients = []
    for smoothing in (0.0, 0.2):
        leaf = student.clone().requires_grad_()
        objective = losses.Objective(Distillation(2.0, 1.0, loss), torch.ones(8, dtype=torch.float64), smoothing)
        objective(leaf, teacher, labels, 6)[0].backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


def test_the_reasons_for_refusing_are_true():
    student, teacher = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 1])
    assert losses.dkd(student, teacher, labels, 2.0, 1.0).tolist() == pytest.approx(
        losses.dkd(student, teacher, labels, 2.0, 99.0).tolist()
    )
    student.requires_grad_()
    losses.relations(student, teacher, 2.0)[0].sum().backward()
    assert student.grad.abs().max() < 1e-5


@pytest.mark.parametrize("loss", Distillation.LOSSES)
def test_no_loss_has_a_gradient_that_waits_for_the_device(logits, loss):
    """On a GPU a deterministic `scatter_add`, which is the gradient of `gather` and of an index, copies to the host."""
    student, teacher, labels = logits
    student.requires_grad_()
    objective = losses.Objective(Distillation(2.0, 0.5, loss), torch.ones(8, dtype=torch.float64), 0.1)
    with Operations() as ran:
        objective(student, teacher, labels, 6)[0].backward()
    assert "_softmax_backward_data" in ran.names or "_log_softmax_backward_data" in ran.names
    assert not {name for name in ran.names if "scatter" in name or "gather" in name or "index_put" in name}
