"""How a chain unrolls into stages. Pure Python, no heavy imports."""

from dataclasses import dataclass, field, replace

from kdtvit_ray.recipe import DataSpec, Distillation, ModelSpec, Numeric, StageSpec, Training


@dataclass(frozen=True)
class Chain:
    """One chain before it is unrolled. `temperature` and `alpha` hold one value per distilled stage (stages 2..n).
    `training` is that of all stages, save that stage 1 has `first` and stages 2..n have `later` where these are set."""

    order: tuple[int, ...]
    teacher: ModelSpec
    student: ModelSpec
    temperature: tuple[float, ...]
    alpha: tuple[float, ...]
    loss: str = "kd"
    warm_start: bool = True
    training: Training = field(default_factory=Training)
    seed: int = 0
    data: DataSpec = field(default_factory=DataSpec)
    numeric: Numeric = field(default_factory=Numeric)
    first: Training | None = None
    later: Training | None = None

    def stages(self) -> tuple[StageSpec, ...]:
        """Unroll into stages. Stage 1 is the teacher with cross-entropy alone; stage k >= 2 is the student, distilled
        from stage k-1. With alpha = 0 there is no teacher term, so temperature and loss drop out of the key; without a
        warm start either, the stage depends on nothing before it and becomes a root. With alpha = 1 no label enters the
        loss, so their smoothing drops out, and without class weights rehearsed images are learned from as the others
        are. With two classes one is positive, so weights of the sides are those of the classes. Stage k >= 2 rehearses
        the magnifications before its own; not where it would learn from the rehearsed images by a teacher that it
        lacks."""
        made: list[StageSpec] = []
        for index, magnification in enumerate(self.order):
            model = self.teacher if index == 0 else self.student
            warm = index > 0 and self.warm_start and model.same_architecture(made[-1].model)
            distillation = None
            if index > 0 and self.alpha[index - 1] > 0:
                distillation = Distillation(self.temperature[index - 1], self.alpha[index - 1], self.loss)
            parent = made[-1].key if warm or distillation else None
            training = _for_head(model, (self.later if index else self.first) or self.training)
            if index == 0 or (training.rehearsal_loss == "distillation" and not distillation):
                training = training.without_rehearsal()
            if distillation and distillation.alpha == 1:
                training = replace(training, label_smoothing=Training.label_smoothing)
                if training.class_weights == "none":
                    training = replace(training, rehearsal_loss=Training.rehearsal_loss)
            made.append(
                StageSpec(
                    (magnification,),
                    model,
                    training,
                    distillation,
                    parent,
                    warm,
                    self.seed,
                    self.data,
                    self.numeric,
                    tuple(sorted(self.order[:index])) if training.rehearsal > 0 else (),
                )
            )
        return tuple(made)

    def joint(self) -> tuple[StageSpec, ...]:
        """The joint baseline: one stage of the student on all magnifications of the order at once, with the settings
        `training`, since it is neither a first stage nor a later one. No magnification is earlier than it."""
        magnifications = tuple(sorted(self.order))
        training = _for_head(self.student, self.training.without_rehearsal())
        return (
            StageSpec(magnifications, self.student, training, seed=self.seed, data=self.data, numeric=self.numeric),
        )


def _for_head(model: ModelSpec, training: Training) -> Training:
    """The training of a model, without a choice between weights that are equal with its classes."""
    if model.classes == 2 and training.class_weights == "balanced-binary":
        return replace(training, class_weights="balanced")
    return training
