import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cocomix.training.order import WindowOrder


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 5))
def test_every_window_comes_once_an_epoch_and_the_order_is_a_function_of_the_step(
    windows: int, batch_size: int, seed: int
) -> None:
    steps = -(-3 * windows // batch_size)
    order = WindowOrder(windows, batch_size, seed)
    stream = np.concatenate([order.batch(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(stream[epoch * windows : (epoch + 1) * windows]) == list(range(windows))
    fresh = WindowOrder(windows, batch_size, seed)
    assert (fresh.batch(steps - 1) == stream[(steps - 1) * batch_size :]).all()


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = WindowOrder(50, 50, 0)
    assert first.batch(0).tolist() != first.batch(1).tolist()
    assert first.batch(0).tolist() != WindowOrder(50, 50, 1).batch(0).tolist()
