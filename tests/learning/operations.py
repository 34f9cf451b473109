"""Which operations of torch run: on a GPU some of them wait for it, which no number shows."""

from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Notes the `names` of the operations that run meanwhile. A tensor made of Python's numbers, which is copied to
    where it is wanted, is a `lift_fresh`."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        self.names.add(function._schema.name.removeprefix("aten::"))
        return function(*arguments, **(named or {}))
