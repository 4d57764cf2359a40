from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gem_policy.errors import DatasetError
from gem_policy.training.transitions import Transitions

LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=8)


def counted(lengths: Sequence[int]) -> Transitions:
    """Row r of the observations holds the number r; so does step t of actions and rewards."""
    steps, episodes = sum(lengths), len(lengths)
    return Transitions(
        observations=torch.arange(steps + episodes, dtype=torch.float32)[:, None],
        actions=torch.arange(steps, dtype=torch.float32)[:, None],
        rewards=torch.arange(steps, dtype=torch.float32),
        terminated=torch.zeros(steps, dtype=torch.bool),
        truncated=torch.zeros(steps, dtype=torch.bool),
        episode=torch.repeat_interleave(torch.arange(episodes), torch.tensor(lengths)),
    )


@given(LENGTHS)
def test_a_step_starts_where_the_one_before_ended_and_never_crosses_an_episode(
    lengths: list[int],
) -> None:
    batch = counted(lengths).all()
    row = 0
    step = 0
    for length in lengths:
        for _ in range(length):
            assert batch.observations[step].item() == row
            assert batch.next_observations[step].item() == row + 1
            row, step = row + 1, step + 1
        row += 1  # the last observation of an episode starts no step


@given(LENGTHS)
def test_lengths_and_returns_are_those_of_a_loop(lengths: list[int]) -> None:
    data = counted(lengths)
    assert data.lengths.tolist() == lengths
    assert data.episodes == len(lengths)
    rewards = data.rewards.tolist()
    expected = [sum(rewards[sum(lengths[:i]) : sum(lengths[: i + 1])]) for i in range(len(lengths))]
    assert data.returns.tolist() == expected


@given(LENGTHS, st.data())
def test_selected_episodes_keep_their_steps(lengths: list[int], draw: st.DataObject) -> None:
    data = counted(lengths)
    chosen = draw.draw(
        st.lists(st.integers(0, len(lengths) - 1), min_size=1, unique=True).map(sorted)
    )
    part = data.select(torch.tensor(chosen))
    steps = torch.cat([(data.episode == number).nonzero()[:, 0] for number in chosen])
    assert part.lengths.tolist() == [lengths[number] for number in chosen]
    whole, selected = data.batch(steps), part.all()
    for name in ("observations", "actions", "rewards", "next_observations", "terminated"):
        assert torch.equal(getattr(whole, name), getattr(selected, name))


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_a_batch_has_the_shape_of_its_index(shape: tuple[int, ...]) -> None:
    index = torch.randint(9, shape, generator=torch.Generator().manual_seed(0))
    batch = counted([4, 5]).batch(index)
    assert batch.observations.shape == (*shape, 1)
    assert torch.equal(batch.rewards, index.float())


def test_no_observation_is_stored_twice() -> None:
    data = counted([10] * 10)
    assert data.observations.nbytes == 4 * (100 + 10)
    assert data.nbytes == 4 * 110 + 100 * (4 + 4 + 1 + 1 + 8)


def test_nothing_selected_is_an_error() -> None:
    with pytest.raises(DatasetError, match="No episode is left"):
        counted([2]).select(torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": torch.zeros(5, 1)}, "4 steps in 2 episodes need 6 observations"),
        ({"episode": torch.tensor([0, 0, 2, 2])}, "without gaps"),
        ({"episode": torch.tensor([1, 1, 2, 2])}, "without gaps"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, torch.Tensor], message: str) -> None:
    good = counted([2, 2])
    with pytest.raises(DatasetError, match=message):
        Transitions(**{**vars(good), **change})
