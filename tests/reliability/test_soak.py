"""The short form of the soak: a few rounds, with everything that the long one does."""

from tests.reliability import soak


def test_jobs_of_two_clients_are_cancelled_at_random_and_nothing_stays(monkeypatch):
    monkeypatch.setattr(soak, "ROUND", 4)
    monkeypatch.setattr(soak, "FREE_EVERY", 2)
    monkeypatch.setattr(soak, "CHECK_EVERY", 3)
    results = soak.Results()
    with soak.fresh_server() as client:
        soak.soak(client, 12, 5, results)
    assert results.failures == []
    assert sum(results.ends.values()) == 12 and results.ends["cancelled"] and results.ends["done"]
    assert soak.differing(results.checks) == 0
    first, last = results.held[0], results.held[-1]
    assert last["hooks"] <= first["hooks"] and last["files"] <= first["files"] + 5
