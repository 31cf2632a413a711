"""Deferred checks: at once on the CPU; on CUDA without a wait, late, but never too late."""

from types import SimpleNamespace

import pytest
import torch

from wmse import numerics as deferred
from wmse.losses import w_mse_loss
from wmse.numerics import MAX_PENDING, require, settle
from wmse.whitening import whiten

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
    assert not deferred._pending


# --- the queue, with a device that we play ourselves ----------------------------------------------


class Flags:
    """Stands for a bool tensor; on the device if `is_cuda`."""

    is_cuda = True

    def __init__(self, shape=(1,)):
        self.shape, self.value = shape, None

    def copy_(self, other, non_blocking=False):
        assert non_blocking, "a blocking copy is a host sync"
        self.value = other.value

    def all(self):
        return self.value

    def __bool__(self):
        raise AssertionError("looked at a flag of the device: that is a host sync")


class Device:
    """Work is done when `finish` is called, and no event has arrived before."""

    def __init__(self):
        self.events, self.waits, self.capturing = [], 0, False

    def finish(self, count=None):
        for event in self.events[:count]:
            event.done = True

    def ok(self, value):
        flags = Flags()
        flags.value = value
        return flags


@pytest.fixture
def device(monkeypatch):
    device = Device()

    class Event:
        done = False

        def record(self):
            device.events.append(self)

        def query(self):
            return self.done

        def synchronize(self):
            device.waits += not self.done
            self.done = True

    def empty(shape, dtype, pin_memory):
        assert dtype == torch.bool and pin_memory
        return Flags(shape)

    fake = SimpleNamespace(
        bool=torch.bool,
        empty=empty,
        cuda=SimpleNamespace(Event=Event, is_current_stream_capturing=lambda: device.capturing),
    )
    monkeypatch.setattr(deferred, "torch", fake)
    deferred._pending.clear()
    yield device
    deferred._pending.clear()


def test_a_bad_flag_raises_on_the_first_call_after_it_has_arrived(device):
    require(device.ok(False), lambda ok: Late("the first"))
    require(device.ok(True), lambda ok: Late("the second"))  # not arrived: nobody knows yet
    device.finish()
    with pytest.raises(Late, match="the first"):
        require(device.ok(True), lambda ok: Late("the third"))
    assert device.waits == 0


def test_good_flags_never_wait_while_the_device_keeps_up(device):
    for _ in range(100):
        require(device.ok(True), lambda ok: Late())
        assert len(deferred._pending) <= 2
        device.finish(-1)
    assert device.waits == 0


def test_a_device_that_lags_is_waited_for_after_max_pending_calls(device):
    """Were it not, a run could go on for ever behind its own error."""
    require(device.ok(False), lambda ok: Late())
    calls = 0
    with pytest.raises(Late):
        for _ in range(100):
            calls += 1
            require(device.ok(True), lambda ok: ValueError("the wrong one"))
    assert calls <= MAX_PENDING and device.waits == 1


def test_the_queue_never_grows_beyond_max_pending(device):
    for _ in range(50):
        require(device.ok(True), lambda ok: Late())
        assert len(deferred._pending) <= MAX_PENDING


def test_settle_waits_for_all_and_empties_the_queue(device):
    for _ in range(3):
        require(device.ok(True), lambda ok: Late())
    settle()
    assert not deferred._pending and all(event.done for event in device.events)
    require(device.ok(False), lambda ok: Late("explained with its flags" if ok.value is False else ""))
    with pytest.raises(Late, match="explained with its flags"):
        settle()


def test_settle_without_wait_takes_only_what_has_arrived(device):
    for value in (True, True, False):
        require(device.ok(value), lambda ok: Late())
    device.finish(2)
    settle(wait=False)
    assert len(deferred._pending) == 1 and device.waits == 0
    device.finish()
    with pytest.raises(Late):
        settle(wait=False)


def test_an_error_clears_the_queue_so_that_the_next_run_starts_clean(device):
    for name in ("first", "second"):
        require(device.ok(False), lambda ok, name=name: Late(name))
    with pytest.raises(Late, match="first"):
        settle()
    assert not deferred._pending
    settle()


def test_while_a_graph_is_captured_nothing_is_queued(device):
    device.capturing = True
    require(device.ok(False), lambda ok: Late())
    assert not deferred._pending


def test_settling_nothing_is_no_error():
    settle()
    settle(wait=False)


# --- a real device --------------------------------------------------------------------------------


@cuda
def test_a_singular_slice_on_cuda_stops_the_run_within_max_pending_calls():
    settle()
    x = torch.randn(4, 64, 16, device="cuda")
    bad = x.clone()
    bad[2, :, 5] = 1.0
    z = whiten(bad)
    assert bool(z[2].isnan().all()) and bool(z[[0, 1, 3]].isfinite().all())
    with pytest.raises(ValueError, match="slice 2.*deferred"):
        for _ in range(MAX_PENDING):
            whiten(x)
    settle()


@cuda
def test_nan_on_cuda_is_told_by_settle():
    settle()
    x = torch.randn(4, 64, 16, device="cuda")
    x[1, 3, 3] = float("nan")
    whiten(x)
    with pytest.raises(ValueError, match="NaN or infinity in slice 1"):
        settle()


@cuda
@pytest.mark.parametrize("whitening", ["cholesky", "qr"])
def test_the_loss_on_cuda_never_makes_the_host_wait(whitening):
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(2, 256, 32, device="cuda", generator=generator, requires_grad=True)

    def step():
        w_mse_loss(x, 64, 2, whitening=whitening, generator=generator).backward()

    step()
    settle()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    settle()
