"""Checks: at once, or deferred until somebody looks; and plain float32 whatever is set outside."""

from dataclasses import replace

import pytest
import torch

from wmse.checkpoints import load_checkpoint, save_checkpoint
from wmse.losses import w_mse_loss
from wmse.numerics import MAX_REFUSED, Checks, float32_products, require
from wmse.recipes import get_recipe
from wmse.run import DivergenceError, Run
from wmse.whitening import SingularCovarianceError, whiten

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Late(ValueError):
    pass


def test_on_the_cpu_it_raises_at_once():
    require(torch.tensor([True, True]), lambda ok: Late())
    require(torch.tensor(True), lambda ok: Late())
    require(torch.ones(0, dtype=torch.bool), lambda ok: Late())
    with pytest.raises(Late, match="second of two"):
        require(
            torch.tensor([True, False]), lambda ok: Late("second of two" if ok.tolist() == [1, 0] else "")
        )


# --- deferred, on the CPU as on a GPU -------------------------------------------------------------


def slices(bad=()):
    x = torch.randn(4, 64, 16, generator=torch.Generator().manual_seed(0))
    for index in bad:
        x[index, :, 5] = x[index, :, 6]
    return x


def test_a_deferred_check_raises_at_the_look_and_names_the_slice():
    checks = Checks()
    for bad in ((), (2,), (), ()):
        with checks:
            z = whiten(slices(bad))
        assert [bool(part.isnan().all()) for part in z] == [index in bad for index in range(4)]
    with pytest.raises(SingularCovarianceError, match=r"slice 2 \(1 of 4 slices fail.*deferred"):
        checks.look()


def test_flags_are_kept_apart_by_check_and_the_first_one_speaks():
    checks = Checks()
    for good in (True, False, True):
        with checks:
            require(torch.tensor(True), lambda ok: Late("the first"))
            require(torch.tensor([True, good]), lambda ok: Late(f"the second: {ok.tolist()}"))
            require(torch.tensor(good), lambda ok: Late("the third"))
    with pytest.raises(Late, match=r"the second: \[True, False\]"):
        checks.look()


def test_what_has_been_told_or_let_pass_is_forgotten():
    checks = Checks()
    with checks:
        require(torch.tensor(False), lambda ok: Late("old"))
        checks.count(torch.tensor(False))
    checks.look()  # one refused step is let pass
    for _ in range(MAX_REFUSED):
        with checks:
            require(torch.tensor(True), lambda ok: Late("old"))
        checks.count(torch.tensor(False))
    checks.look()
    assert checks.refused == (1 + MAX_REFUSED, 1 + MAX_REFUSED)


def test_a_flag_of_one_run_never_speaks_in_another():
    first, second = Checks(), Checks()
    with first:
        require(torch.tensor(False), lambda ok: Late("of the first"))
    with second:
        require(torch.tensor(True), lambda ok: Late("of the second"))
    second.look()
    with pytest.raises(Late, match="now"):
        require(torch.tensor(False), lambda ok: Late("now"))
    with pytest.raises(Late, match="of the first"):
        first.look()


@pytest.mark.parametrize(
    "refusals, stops", [([1] * (MAX_REFUSED - 1) + [0] + [1], False), ([1] * MAX_REFUSED + [0], True)]
)
def test_a_run_stops_after_so_many_refused_steps_in_a_row(refusals, stops):
    checks = Checks()
    for refused in refusals:
        with checks:
            require(torch.tensor(not refused), lambda ok: Late())
        checks.count(torch.tensor(not refused))
    assert checks.refused[0] == sum(refusals)
    if stops:
        with pytest.raises(Late):
            checks.look()
    else:
        checks.look()


# --- a run whose checks are deferred, as on a GPU -------------------------------------------------


@pytest.fixture
def run():
    recipe = replace(get_recipe("digits/w-mse-2"), precision="float32", batch_size=64)
    run = Run(recipe, 256, torch.device("cpu"))
    run.checks, run.scaler = Checks(), torch.amp.GradScaler("cpu", init_scale=1.0)
    return run


def views_of(run, same=False):
    views = torch.randn(2, run.recipe.batch_size, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return views[:, :1].expand_as(views) if same else views  # one image again and again: no slice has rank k


def state_of(run):
    moments = [value for state in run.optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in (*run.networks.parameters(), *moments)]


def test_a_refused_slice_skips_the_update_and_is_counted(run, tmp_path):
    labels = torch.zeros(run.recipe.batch_size, dtype=torch.int64)
    run.step(views_of(run), labels)
    before = state_of(run)
    loss, _ = run.step(views_of(run, same=True), labels)
    assert loss.isnan() and run.checks.refused == (1, 1) and run.steps_taken == 2
    assert all(map(torch.equal, before, state_of(run)))
    save_checkpoint(run, tmp_path)  # one skipped step is no reason not to
    again = Run(run.recipe, 256, torch.device("cpu"))
    again.checks, again.scaler = Checks(), torch.amp.GradScaler("cpu")
    again.load_state_dict(load_checkpoint(tmp_path))
    assert again.checks.refused == (1, 1)
    run.step(views_of(run), labels)
    assert not all(map(torch.equal, before, state_of(run))) and run.checks.refused[0] == 1


def test_refused_slices_in_a_row_stop_the_run_and_are_named(run):
    labels = torch.zeros(run.recipe.batch_size, dtype=torch.int64)
    for _ in range(MAX_REFUSED):
        run.step(views_of(run, same=True), labels)
    with pytest.raises(SingularCovarianceError, match=r"slice \(0, 0, 0\)"):
        run.checks.look()


def test_poisoned_statistics_are_never_saved(run, tmp_path):
    labels = torch.zeros(run.recipe.batch_size, dtype=torch.int64)
    run.step(views_of(run) * torch.nan, labels)
    with pytest.raises(DivergenceError, match="BatchNorm"):
        save_checkpoint(run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_on_the_cpu_a_run_raises_at_once():
    run = Run(replace(get_recipe("digits/w-mse-2"), batch_size=64), 256, torch.device("cpu"))
    with pytest.raises(SingularCovarianceError):
        run.step(views_of(run, same=True), torch.zeros(64, dtype=torch.int64))


# --- float32 --------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="before torch 2.9")
@pytest.mark.parametrize("how", ["old", "new"])
def test_products_are_in_float32_whatever_is_set_outside(how):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    try:
        if how == "old":
            torch.set_float32_matmul_precision("high")
        else:
            matmul.fp32_precision = "tf32"
        with torch.autocast("cpu", torch.bfloat16):
            with float32_products(torch.device("cpu")):
                assert matmul.fp32_precision == "ieee" and not torch.is_autocast_enabled("cpu")
            assert torch.is_autocast_enabled("cpu")
        assert matmul.fp32_precision == "tf32"
    finally:
        torch.set_float32_matmul_precision("highest")
        matmul.fp32_precision = before


# --- a real device --------------------------------------------------------------------------------


@cuda
def test_outside_of_deferred_checks_a_singular_slice_on_cuda_raises_at_once():
    with pytest.raises(SingularCovarianceError, match="slice 2"):
        whiten(slices((2,)).cuda())


@cuda
@pytest.mark.parametrize("whitening", ["cholesky", "qr"])
def test_the_loss_on_cuda_never_makes_the_host_wait(whitening):
    generator, checks = torch.Generator("cuda").manual_seed(0), Checks()
    x = torch.randn(2, 256, 32, device="cuda", generator=generator, requires_grad=True)

    def step():
        with checks:
            w_mse_loss(x, 64, 2, whitening=whitening, generator=generator).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    checks.look()
