"""One process, and the shares of several."""

from __future__ import annotations

import pytest
from hf_sparsify.errors import DataError, SparsifyError
from hf_sparsify.processes import Processes, is_main_process


def test_one_process_has_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes.join()
    assert alone == Processes(0, 1)
    assert alone.is_main
    assert alone.share([1, 2, 3]) == [1, 2, 3]
    assert alone.gather("x") == ["x"]
    alone.wait()


def test_a_launcher_with_one_process_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.join() == Processes(0, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_everything_once(count: int) -> None:
    shares = [Processes(rank, count).share(range(5)) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == [0, 1, 2, 3, 4]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_only_rank_0_prints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


@pytest.mark.parametrize(("rank", "order"), [(0, ["read", "wait"]), (1, ["wait", "read"])])
def test_the_first_process_reads_before_the_others(
    rank: int, order: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(Processes, "wait", lambda _: done.append("wait"))
    Processes(rank, 2).in_turn(lambda: done.append("read"))
    assert done == order


def test_what_fails_on_one_process_fails_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def gathered(processes: Processes, value: object) -> list[object]:
        return [None, value] if processes.rank == 1 else [value, ("broken", True)]

    monkeypatch.setattr(Processes, "gather", gathered)
    with pytest.raises(RuntimeError, match=r"^mine$"), Processes(1, 2).together():
        raise RuntimeError("mine")
    with pytest.raises(SparsifyError, match=r"^broken$"), Processes(0, 2).together():
        pass
    with Processes(1, 2).together():
        pass


def test_one_process_fails_by_itself() -> None:
    with pytest.raises(DataError, match="mine"), Processes().together():
        raise DataError("mine")
    with pytest.raises(KeyboardInterrupt), Processes().together():
        raise KeyboardInterrupt
