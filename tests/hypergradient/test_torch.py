"""Private torch: its names appear in two files only, and its readers read what torch saved."""

import ast
import pathlib

import pytest
import torch

from optuna_glocal.hypergradient import _torch, _torch_modes

PACKAGE = pathlib.Path(_torch.__file__).parents[1]
HOMES = {pathlib.Path(module.__file__) for module in (_torch, _torch_modes)}
FILES = [path for path in PACKAGE.rglob("*.py") if path not in HOMES]
# What other rooms still touch; to be imported from `_torch` or `_torch_modes` instead.
ELSEWHERE = {
    "hypergradient": {"_last_lr"},  # schedulers/
    # Hugging Face's Trainer.
    "integrations": {
        "_load_best_model",
        "_load_optimizer_and_scheduler",
        "_prepare_inputs",
        "_save_optimizer_and_scheduler",
    },
    # Optuna.
    "storage": {"_get_trials", "_trial_id", "_storage"},
}


def private_names(path):
    """Underscored attributes that no class of the file has, private imports, `.data`, aten."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    own = {a.attr for a in attributes if getattr(a.value, "id", None) in ("self", "cls")}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            private = node.attr.startswith("_") and not node.attr.startswith("__")
            is_tensor_data = node.attr == "data" and "torch" in path.read_text()
            if (private and node.attr not in own) or is_tensor_data:
                yield node.attr
            if ast.unparse(node) == "torch.ops.aten":
                yield "torch.ops.aten"
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("torch"):
            if "._" in node.module:
                yield node.module
            yield from (a.name for a in node.names if a.name.startswith("_"))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if node.value.startswith(("_saved_", "_input_metadata", "_version")):
                yield node.value


@pytest.mark.parametrize("room", sorted({p.relative_to(PACKAGE).parts[0] for p in FILES}))
def test_private_torch_is_named_in_two_files(room):
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in FILES
        if path.relative_to(PACKAGE).parts[0] == room
        for name in private_names(path)
        if name not in ELSEWHERE.get(room, ())
    }
    assert not found


def test_public_names_are_there_and_sorted():
    for module in (_torch, _torch_modes):
        assert all(hasattr(module, name) for name in module.__all__)
        assert sorted(module.__all__) == module.__all__


def test_saved_reads_one_or_several_values():
    a, b = (torch.randn(2, 2, requires_grad=True) for _ in range(2))
    node = (a @ b).grad_fn
    assert _torch.saved("self")(node) is a
    left, right = _torch.saved("self", "mat2")(node)
    assert left is a and right is b
    assert tuple(_torch.output_metadata(node)[0].shape) == (2, 2)
    assert _torch.node_name(type(node)) == "MmBackward0"


def test_recomputed_tensors_are_noticed():
    x = torch.randn(3, requires_grad=True)
    assert _torch.keeps_saved_tensors(x.tanh().grad_fn)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.clone())
    with hooks:
        y = x.tanh()
    assert not _torch.keeps_saved_tensors(y.grad_fn)


def test_a_hook_that_is_taken_from_the_dict_does_not_run():
    p, ran = torch.zeros(2, requires_grad=True), []
    p.register_hook(ran.append)
    _torch.backward_hooks(p).clear()
    p.sum().backward()
    assert not ran


def test_a_custom_function_is_known_from_its_node():
    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

    x = torch.zeros(2, requires_grad=True)
    assert _torch.custom_function(Twice.apply(x).grad_fn) is Twice
    assert _torch.custom_function(x.sum().grad_fn) is None


def test_a_value_is_put_back_without_counting_as_a_write():
    x = torch.zeros(2)
    _torch.write_unseen(x, torch.ones(2))
    assert _torch.version_of(x) == 0 and bool((x == 1).all())


def test_writes_are_counted():
    x = torch.zeros(2)
    before = _torch.version_of(x)
    x.add_(1)
    assert _torch.version_of(x) == before + 1


def test_lists_of_tensors_at_once():
    a, b = [torch.ones(2), torch.ones(3)], [torch.zeros(2), torch.full((3,), 3.0)]
    assert _torch.flatten_dense(a).shape == (5,)
    _torch.lerp_each_(a, b, 0.5)
    assert torch.equal(torch.cat(a), torch.tensor([0.5, 0.5, 2.0, 2.0, 2.0]))
    _torch.copy_each_(a, b)
    assert torch.equal(torch.cat(a), torch.cat(b))
    assert [float(n) for n in _torch.norm_each([torch.tensor([3.0, 4.0])])] == [5.0]


def test_data_may_change_dtype_without_another_parameter():
    p = torch.nn.Parameter(torch.ones(2))
    before = p.detach()
    _torch.replace_data(p, p.detach().double())
    assert p.dtype == torch.float64 and p.is_leaf and p.requires_grad
    _torch.replace_data(p, before)
    assert p.dtype == torch.float32 and p.data_ptr() == before.data_ptr()


def test_flops_of_known_kernels_only():
    seen = []

    class Seen(_torch.DispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            count = _torch.flop_formula(func)
            seen.append(None if count is None else count(*args, out_val=out))
            return out

    with Seen():
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert seen[-1] == 2 * 2 * 3 * 4 and None in seen


def test_a_scaler_tells_fused_optimizers():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    assert _torch.scaler_flags(optimizer) == (None, None)
    optimizer.found_inf = torch.ones(1)
    assert _torch.scaler_flags(optimizer)[0] is optimizer.found_inf
