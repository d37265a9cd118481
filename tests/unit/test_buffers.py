"""Buffers that are used again and again: never by two at once, never more than are needed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas_checkpoint.buffers import ReadBuffers, anonymous_memory


@pytest.mark.parametrize("size", [1, 4096, 1_000_003])
def test_anonymous_memory_is_zeros_that_can_be_written(size):
    memory = anonymous_memory(size)
    assert bytes(memory) == bytes(size)
    memory[-1] = 7
    assert memory[-1] == 7
    assert not any(anonymous_memory(size))  # memory of its own


def test_a_buffer_that_was_dropped_is_taken_again():
    buffers = ReadBuffers(100)
    first, second = buffers.take(), buffers.take()
    assert (buffers.made, buffers.used) == (2, 2)
    assert (len(first.view), len(second.view)) == (100, 100)
    buffers.drop(first)
    assert (buffers.made, buffers.used) == (2, 1)
    assert buffers.take() is first
    assert (first.users, buffers.made, buffers.used) == (1, 2, 2)


def test_a_buffer_is_free_when_its_last_user_dropped_it():
    buffers = ReadBuffers(10)
    buffer = buffers.take()
    buffer.users += 1
    buffers.drop(buffer)
    assert buffers.used == 1
    assert buffers.take() is not buffer
    buffers.drop(buffer)
    assert buffers.take() is buffer
    assert buffers.made == 2


@settings(deadline=None, max_examples=100)
@given(steps=st.lists(st.tuples(st.sampled_from(["take", "share", "drop"]), st.integers(0, 20)), max_size=60))
def test_no_buffer_has_users_who_do_not_know_of_one_another(steps):
    buffers = ReadBuffers(16)
    held = []  # one for each user
    most = 0
    for step, number in steps:
        if step == "take":
            buffer = buffers.take()
            assert not any(buffer is other for other in held)
            held.append(buffer)
        elif held:
            buffer = held[number % len(held)]
            if step == "share":
                buffer.users += 1
                held.append(buffer)
            else:
                held.remove(buffer)
                buffers.drop(buffer)
        different = {id(buffer) for buffer in held}
        most = max(most, len(different))
        assert buffers.used == len(different)
    assert buffers.made == most
