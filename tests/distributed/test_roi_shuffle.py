"""RoI shuffling by moving features: on one process, and on 2, 3 and 4 real ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from bn_detect.distributed import shuffle_rois, unshuffle_rois
from bn_detect.distributed.roi_shuffle import balanced_owner, balanced_shares

SPLITS = {
    2: [(5, 3), (8, 0), (0, 0), (1, 7), (1, 0)],
    3: [(5, 3, 0), (0, 8, 1), (0, 0, 0), (1, 7, 4), (0, 1, 0)],
    4: [(5, 3, 0, 2), (0, 0, 8, 0), (0, 0, 0, 0), (1, 7, 2, 1), (0, 1, 1, 0)],
}
TRAILING = [(), (3,), (2, 5, 5)]
ROWS = [(trailing, dtype) for trailing in TRAILING for dtype in (torch.float32, torch.int64)]
ROWS += [((3,), dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16, torch.bool)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(start: int, number: int, trailing: tuple, dtype: torch.dtype) -> Tensor:
    """Rows start ... start + number - 1 of a tensor whose rows all differ."""
    x = torch.arange(start, start + number).view(-1, *[1] * len(trailing))
    x = x + torch.arange(torch.Size(trailing).numel()).view(trailing) / 100
    return x % 2 > 1 if dtype == torch.bool else x.to(dtype)


def moved(group, split: tuple, trailing: tuple, dtype: torch.dtype) -> dict:
    rank = dist.get_rank(group)
    x = rows(sum(split[:rank]), split[rank], trailing, dtype)
    shuffled, plan = shuffle_rois(x, generator(), group)
    return {
        "x": x,
        "shuffled": shuffled,
        "back": unshuffle_rois(shuffled, plan),
        "plan": (plan.permutation, plan.send, plan.receive),
        "positions": plan.positions,
    }


def gradients(group, split: tuple) -> tuple[Tensor, ...]:
    """x, and the gradient and its gradient of a sum of terms that depend on the shuffled order."""
    rank = dist.get_rank(group)
    x = rows(sum(split[:rank]), split[rank], (2,), torch.float64).requires_grad_()
    shuffled, plan = shuffle_rois(x, generator(), group)
    y = unshuffle_rois(shuffled**3 * plan.positions.double()[:, None], plan)
    (first,) = torch.autograd.grad((y * x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return x.detach(), first.detach(), second


def wrong_rows(group, split: tuple) -> str:
    x, plan = shuffle_rois(torch.zeros(split[dist.get_rank(group)], 3), generator(), group)
    try:
        unshuffle_rois(torch.zeros(len(x) + 1, 3), plan)
    except ValueError as error:
        return str(error)
    return ""


def on_rank(rank: int, world_size: int) -> dict:
    """By the number of workers: what the first 2, the last 3 (as a group of them) and all 4 do."""
    groups = {2: dist.new_group([0, 1]), 3: dist.new_group([1, 2, 3]), 4: None}
    return {
        workers: {
            "moved": {
                (split, trailing, dtype): moved(group, split, trailing, dtype)
                for split in SPLITS[workers]
                for trailing, dtype in ROWS
            },
            "gradients": [gradients(group, split) for split in SPLITS[workers]],
            "wrong rows": [wrong_rows(group, split) for split in SPLITS[workers]],
        }
        for workers, group in groups.items()
        if dist.get_rank(group) >= 0
    }


@pytest.fixture(params=[2, 3, 4], ids="{} ranks".format)
def ranks(request, four_ranks) -> list[dict]:
    """What each of 2, 3 and 4 ranks gives."""
    results = [r["shuffle"] for r in four_ranks]
    return [r[request.param] for r in results if request.param in r]


@pytest.mark.parametrize(("trailing", "dtype"), ROWS, ids=str)
def test_rows_are_dealt_out_by_one_permutation_and_come_back(ranks, trailing, dtype):
    for split in SPLITS[len(ranks)]:
        by_rank = [r["moved"][split, trailing, dtype] for r in ranks]
        permutation = by_rank[0]["plan"][0]
        assert sorted(permutation.tolist()) == list(range(sum(split)))
        everything = torch.cat([r["x"] for r in by_rank])
        shuffled = torch.cat([r["shuffled"] for r in by_rank])
        positions = torch.cat([r["positions"] for r in by_rank])
        assert torch.equal(shuffled, everything[permutation[positions]])
        # Consecutive shares, which are equal to within one row.
        start, shares = 0, [len(r["shuffled"]) for r in by_rank]
        for r, share in zip(by_rank, shares, strict=True):
            assert sorted(r["positions"].tolist()) == list(range(start, start + share))
            start += share
        assert max(shares) - min(shares) <= 1
        for r in by_rank:
            assert torch.equal(r["plan"][0], permutation)
            assert r["back"].dtype == r["shuffled"].dtype == dtype
            assert torch.equal(r["back"], r["x"])


def test_the_plan_says_what_each_rank_sends_and_receives(ranks):
    for split in SPLITS[len(ranks)]:
        plans = [r["moved"][split, (), torch.int64]["plan"] for r in ranks]
        sent = torch.tensor([send for _, send, _ in plans])
        received = torch.tensor([receive for _, _, receive in plans])
        assert torch.equal(sent, received.T)
        assert sent.sum(1).tolist() == list(split)


def test_gradients_return_to_where_rows_came_from(ranks):
    for step, split in enumerate(SPLITS[len(ranks)]):
        x, first, second = (
            torch.cat(parts) for parts in zip(*(r["gradients"][step] for r in ranks), strict=True)
        )
        permutation = ranks[0]["moved"][split, (), torch.int64]["plan"][0]
        position = torch.empty(len(x), 1, dtype=torch.float64)
        position[permutation, 0] = torch.arange(len(x)).double()
        torch.testing.assert_close(first, 4 * x**3 * position)  # of x^4 times position
        torch.testing.assert_close(second, 12 * x**2 * position)


def test_wrong_number_of_rows_on_ranks(ranks):
    for step, split in enumerate(SPLITS[len(ranks)]):
        for r, share in zip(ranks, balanced_shares(sum(split), len(ranks)), strict=True):
            message = f"got {share + 1} rows, but the plan gave this worker {share}"
            assert message in r["wrong rows"][step]


# One process.


@pytest.mark.parametrize("number", [0, 1, 9])
@pytest.mark.parametrize("trailing", TRAILING, ids=str)
def test_without_a_process_group_rows_are_permuted(number, trailing):
    x = rows(0, number, trailing, torch.float64)
    shuffled, plan = shuffle_rois(x, generator())
    assert torch.equal(shuffled, x[plan.permutation])
    assert plan.send == plan.receive == (number,)
    assert torch.equal(unshuffle_rois(shuffled, plan), x)
    if number == 9:
        assert not torch.equal(shuffled, x)


def test_the_generator_decides():
    x = torch.arange(40)
    first, again, other = (shuffle_rois(x, generator(seed))[0].tolist() for seed in (0, 0, 1))
    assert first == again != other
    same = generator()
    assert shuffle_rois(x, same)[0].tolist() != shuffle_rois(x, same)[0].tolist()


def test_outputs_of_another_shape_and_dtype_come_back():
    x = torch.randn(7, 3, 2, 2)
    shuffled, plan = shuffle_rois(x, generator())
    labels = shuffled.flatten(1).argmax(1)
    assert torch.equal(unshuffle_rois(labels, plan), x.flatten(1).argmax(1))


def test_inputs_need_not_be_contiguous():
    x = torch.randn(6, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    for view in (x, x[::2], x[..., 1], x[:1].expand(5, -1, -1, -1)):
        shuffled, plan = shuffle_rois(view, generator())
        assert torch.equal(shuffled, view[plan.permutation])
        assert torch.equal(unshuffle_rois(shuffled, plan), view)


def test_gradcheck():
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)

    def there(x):
        return shuffle_rois(x, generator())[0]

    _, plan = shuffle_rois(x, generator())
    for function in (there, lambda y: unshuffle_rois(y, plan)):
        assert gradcheck(function, [x])
        assert gradgradcheck(lambda t, f=function: f(t) ** 2, [x])


@pytest.mark.parametrize("wrong", [0, 4, 6])
def test_a_wrong_number_of_rows_is_refused(wrong):
    _, plan = shuffle_rois(torch.zeros(5, 2), generator())
    with pytest.raises(ValueError, match=f"got {wrong} rows, but the plan gave this worker 5"):
        unshuffle_rois(torch.zeros(wrong, 2), plan)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("total", [0, 1, 7, 8, 513])
def test_balanced_shares(total, parts):
    shares = balanced_shares(total, parts)
    assert len(shares) == parts and sum(shares) == total
    assert max(shares) - min(shares) <= 1
    owner = balanced_owner(total, parts)
    assert torch.bincount(owner, minlength=parts).tolist() == shares
    assert owner.tolist() == sorted(owner.tolist())
