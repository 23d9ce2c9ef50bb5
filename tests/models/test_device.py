"""Device memory, with a stand-in for torch's book-keeping of a card: there is none in CI."""

import gc
import weakref

import pytest
import torch

from unrefuse.models import device
from unrefuse.models.device import free_memory, is_spread, release_memory


@pytest.mark.parametrize(("held", "used"), [(0, 0), (60, 60), (60, 10), (60, 0)])
def test_what_torch_keeps_of_a_card_and_does_not_use_is_free(monkeypatch, held, used):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100 - held, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: used)
    assert free_memory(torch.device("cuda:0")) == 100 - used


def test_memory_is_released_in_order_the_objects_then_the_cards_cache(monkeypatch):
    class Ring:
        pass

    ring = Ring()
    ring.self, alive, emptied = ring, weakref.ref(ring), []
    gc.disable()
    try:
        del ring
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: emptied.append(alive()))
        release_memory()
    finally:
        gc.enable()
    assert emptied == [None]
    monkeypatch.undo()
    release_memory()  # without a card


def test_a_spread_network_is_known(monkeypatch):
    network = torch.nn.Linear(1, 1)
    for places, spread in (({}, False), ({"": 0}, False), ({"a": 0, "b": 1}, True)):
        network.hf_device_map = places
        assert is_spread(network) is spread


def test_auto_is_the_accelerator_where_there_is_one(monkeypatch):
    card = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: card)
    assert device.choose_device("auto") == card
