"""The journal: what it keeps comes back bit for bit, a torn end is dropped, and a replayed search repeats nothing."""

from __future__ import annotations

import gc
import random
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from lotts_search import BadInput, Failure, SearchFailed, SearchResult, fingerprint, search
from lotts_search.core.journal import Journal
from lotts_search.core.kept import Kept
from lotts_search.core.records import JournalError, Records
from lotts_search.core.trial_table import image_hash
from lotts_search.errors import PoolClosed
from lotts_search.testing import AnalyticPool, analytic_info
from lotts_search.testing.conformance import tree
from lotts_search.work.requests import Located, Region, Result, Score, Segment, State, Usage
from tests.scripted import run


def same(one, other):
    """Whether two values are equal in type and content, arrays bit by bit."""
    if type(one) is not type(other):
        return False
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def full_result(rng):
    latent, origin = (rng.standard_normal((2, 4, 4)).astype(np.float32) for _ in range(2))
    latent[0, 0, 0], latent[0, 0, 1] = -0.0, 1e-42
    region = Region(rng.random((4, 4)) > 0.5, origin, ("seed 1", "refine@2 0"), 1, "fresh", False)
    state = State(latent, 3, 8, latent * 2, origin, region, latent[1])
    located = Located(region.mask, latent[0], {"pos": latent[0], "neg": latent[1]}, 0.25)
    image = rng.integers(0, 255, (8, 8, 3), np.uint8)
    return Result(Usage(1.5, 3, 1e12, 1, 1, 0, 0.1, 2.0), state, image, located, 0.5, 0.1, 1.0, 2.0, "node", "actor", 2)


def test_what_is_kept_comes_back_bit_for_bit(tmp_path):
    first, second = full_result(np.random.default_rng(0)), Result(Usage(scores=1), score=float(np.float32(0.1)))
    with Journal(tmp_path / "a", "id") as journal:
        journal.add("one", first)
        journal.add("two", second)
        journal.add("three", Failure("the latent is NaN"))
        journal.add("one", second)  # known: ignored
    with Journal(tmp_path / "a", "id") as journal:
        assert same(journal.find("one"), first) and same(journal.find("two"), second)
        assert isinstance(journal.find("three"), Failure) and str(journal.find("three")) == "the latent is NaN"
        assert journal.find("four") is None and len(journal) == 3 and journal.nfe == 1.5
        journal.find("one").state.latent[:] = 0  # may be written to, as what a pool returns


def test_an_array_is_written_once_a_file(tmp_path):
    latent = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    with Journal(tmp_path / "a", "id") as journal:
        for number in range(10):
            journal.add(str(number), Result(Usage(), State(latent.copy(), number, 10)))
    assert latent.nbytes < (tmp_path / "a").stat().st_size < 1.3 * latent.nbytes
    with Journal(tmp_path / "a", "id") as journal:  # also after it was opened again
        journal.add("more", Result(Usage(), State(latent, 3, 10)))
    assert (tmp_path / "a").stat().st_size < 1.3 * latent.nbytes


def test_what_is_recorded_is_read_back_from_the_file_by_any_thread(tmp_path):
    rng = np.random.default_rng(0)
    results = {str(number): replace(full_result(rng), image_hash="") for number in range(20)}
    results["0"].image_hash = image_hash(results["0"].image)
    with Journal(tmp_path / "a", "id") as journal, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: journal.add(name, results[name]), [*results, *results]))
        assert len(journal) == 20 and journal.nfe == 20 * 1.5
        found = dict(zip(results, threads.map(journal.find, results), strict=True))
    assert all(same(found[name], results[name]) for name in results)
    assert not any(np.shares_memory(found[name].image, results[name].image) for name in results)


def test_what_is_recorded_is_free_at_once(tmp_path):
    """Without the garbage collector, which studies let run rarely."""
    gc.disable()
    try:
        with Journal(tmp_path / "a", "id") as journal:
            result = full_result(np.random.default_rng(0))
            journal.add("one", result)
            gone = weakref.ref(result.image)
            del result
            assert gone() is None
            gone = weakref.ref(journal.find("one").image)
            assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [8, 1024])
def test_a_search_reads_large_images_and_states_back_from_its_journal(tmp_path, monkeypatch, size):
    """The result is that of a search that keeps all in memory; only the large stay in the file."""
    monkeypatch.setattr("lotts_search.core.dispatch.LARGE", size)
    options = {"strategy": "lotts", "images": 9, "seed": 3}
    whole = search("red star", pool=AnalyticPool(), **options)
    with Journal(tmp_path / "a", "id") as journal:
        found = search("red star", pool=AnalyticPool(), journal=journal, search_id="id", **options)
        assert [(t.trial_id, t.score, t.image) for t in found.trials] == [
            (t.trial_id, t.score, t.image) for t in whole.trials
        ]
        assert isinstance(found.images, Kept) and list(found.images) == list(whole.images)
        assert all(same(found.images[key], whole.images[key]) for key in whole.images)
        in_memory = sum(image is not None for image in found.images._held.values())
        assert in_memory == (0 if size == 8 else len(whole.images))
    if size == 8:
        with pytest.raises(JournalError, match="cannot read"):
            found.images[found.best.trial_id]


def test_a_torn_end_is_dropped_wherever_it_is_cut(tmp_path):
    path, records = tmp_path / "a", [bytes([n]) * n * 7 for n in range(5)]
    with Records(path) as file:
        for record in records:
            file.append(record)
    data = path.read_bytes()
    for cut in range(len(data) + 1):
        path.write_bytes(data[:cut])
        with Records(path) as file:
            kept = list(file)
            assert kept == records[: len(kept)]
            file.append(b"new")
        with Records(path) as file:
            assert list(file) == [*kept, b"new"]
    assert kept == records


def test_a_flipped_bit_ends_the_journal_there(tmp_path):
    path = tmp_path / "a"
    with Records(path) as file:
        file.append(b"first")
        whole = file.size
        file.append(b"second")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with Records(path) as file:
        assert (list(file), file.size) == ([b"first"], whole)


def test_the_journal_of_another_search_and_other_files_are_refused(tmp_path):
    Journal(tmp_path / "a", "one").close()
    with pytest.raises(BadInput, match=r"is the journal of another search: .*'one', this is 'two'"):
        Journal(tmp_path / "a", "two")
    (tmp_path / "b").write_text("name: study\n")
    with pytest.raises(BadInput, match="is not a journal"):
        Journal(tmp_path / "b", "one")
    assert (tmp_path / "b").read_text() == "name: study\n"
    with Journal(tmp_path / "a", "one") as journal, pytest.raises(JournalError, match="cannot hold"):
        journal.add("x", Result(Usage(), node=random.Random()))  # type: ignore[arg-type]


async def three_refined(search):
    for seed in range(3):
        candidate = await search.sample(seed)
        await search.refine(candidate, await search.localize(candidate), seed=0)


def test_failures_are_replayed_unless_they_are_to_be_tried_again(tmp_path):
    def second(work):
        return Failure("out of memory") if isinstance(work, Segment) and work.lineage == ("seed 1",) else None

    path = tmp_path / "a"

    async def script(search):
        for seed in range(3):
            try:
                await search.sample(seed)
            except Failure:
                await search.sample(seed + 10)

    first = run(script, AnalyticPool(fail=second), journal=path)
    well = AnalyticPool()
    again = run(script, well, journal=path)
    assert tree(again) == tree(first) and well.asked == []
    with Journal(path, first.trials[0].search_id, retry=True) as journal:
        retried = run(script, well, journal=journal)
    assert [t.status for t in retried.trials] == ["done"] * 6
    assert len(well.asked) == 2  # the sample that had failed and its score; what took its place is not needed


def test_work_that_a_closed_pool_did_not_do_is_not_taken_for_failed(tmp_path):
    closed = []

    def close(work):
        closed.extend([work] if isinstance(work, Score) else [])
        return PoolClosed("the pool is closed") if len(closed) > 1 else None

    first = run(three_refined, AnalyticPool(fail=close), journal=tmp_path / "a")
    assert [t.status for t in first.trials].count("failed") == 1
    whole = run(three_refined)
    pool = AnalyticPool()
    assert tree(run(three_refined, pool, journal=tmp_path / "a")) == tree(whole)
    assert 0 < len(pool.asked) < len(whole.trials)


def test_a_search_that_failed_keeps_what_was_done(tmp_path):
    def all_but_the_first_step(work):
        return Failure("NaN") if isinstance(work, Segment) and work.start else None

    async def script(search):
        await search.advance(await search.sample(0, stop=3))

    path = tmp_path / "a"
    with pytest.raises(SearchFailed) as failed:
        run(script, AnalyticPool(fail=all_but_the_first_step), journal=path)
    pool = AnalyticPool()
    with Journal(path, failed.value.result.trials[0].search_id, retry=True) as journal:
        assert run(script, pool, journal=journal).ledger.nfe == 8
    assert [type(work).__name__ for work in pool.asked] == ["Segment", "Score"]


def test_a_full_disk_ends_the_search_with_its_name(tmp_path):
    journal = Journal(tmp_path / "a", "id")
    journal.close()

    async def script(search):
        await search.sample(0)

    with pytest.raises(JournalError, match=r"cannot write .*a: "):
        run(script, journal=journal)


@pytest.mark.parametrize("change", ["weights", "strategy", "version"])
def test_a_journal_is_not_resumed_after_what_decides_the_search_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(bytes(300_000))
    plug_in = tmp_path / f"journalled_{change}.py"
    plug_in.write_text("from lotts_search.strategies.best_of_n import BestOfN\n\nclass Own(BestOfN):\n    '''Own.'''\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run() -> SearchResult:
        fingerprint.of_code.cache_clear()
        with AnalyticPool(replace(analytic_info(), name=str(model))) as pool:
            return search(
                "a fox", strategy=f"journalled_{change}:Own", images=3, pool=pool, journal=tmp_path / "a.journal"
            )

    first = run()
    assert [row.score for row in run().trials] == [row.score for row in first.trials]
    if change == "weights":
        data = bytearray((model / "weights").read_bytes())
        data[150_000] = 1
        (model / "weights").write_bytes(data)
    elif change == "strategy":
        plug_in.write_text(plug_in.read_text() + "# edited\n")
    else:
        monkeypatch.setattr("lotts_search.__version__", "99.0")
    with pytest.raises(BadInput, match="cannot be resumed: a file of the model, a plug-in or the version"):
        run()
