import signal
import time

import pytest

from tdquant.training import signals
from tdquant.training.signals import Interruptions, put_back, take_over


@pytest.mark.parametrize("number", signals.SIGNALS)
def test_a_signal_that_comes_twice_at_once_is_one(number):
    """As under torchrun, which passes on what was sent to every process of a job."""
    before = signal.getsignal(number)
    with Interruptions() as stop:
        assert not stop.asked
        for _ in range(3):
            signal.raise_signal(number)
        assert stop.asked
    assert signal.getsignal(number) is before


def test_a_later_one_stops_at_once(monkeypatch):
    monkeypatch.setattr(signals, "REPEAT", 0.05)
    before = signal.getsignal(signal.SIGINT)
    with Interruptions() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked
        time.sleep(0.06)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_that_c_code_installed_become_python_s_defaults(monkeypatch):
    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    install = signal.signal

    def from_c(number, handler):
        install(number, handler)  # which refuses None

    try:
        with monkeypatch.context() as patch:
            patch.setattr(signals.signal, "signal", from_c)
            with Interruptions():
                pass
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in before.items():
            install(number, handler)


def test_other_threads_install_nothing():
    from concurrent.futures import ThreadPoolExecutor

    before = {number: signal.getsignal(number) for number in signals.SIGNALS}
    with ThreadPoolExecutor(1) as pool:
        taken = pool.submit(take_over, lambda number, frame: None).result()
    assert taken == {}
    put_back(taken)
    assert {number: signal.getsignal(number) for number in signals.SIGNALS} == before
