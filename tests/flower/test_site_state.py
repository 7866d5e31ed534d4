"""A site goes on from what it kept, and from nothing that is damaged or another's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError
from tiny import make_config, make_dataset, make_scenario, make_simulation

from src import checkpoint
from src.checkpoint import round_file, saved_rounds
from src.client import Client
from src.flower.site_state import SiteState
from utils_.errors import UserError

RUN = "4f1a"


def make_site(number: int = 0) -> Client:
    dataset = make_dataset()
    scenario = make_scenario(dataset, mask="cells")
    return make_simulation(make_config(), dataset, scenario).clients[number]


def trained(round: int) -> Client:
    """A client whose state says after which round it is."""
    client = make_site()
    cells = np.zeros(client.labels.target.shape, bool)
    cells[round % len(cells)] = True
    client.labels.correct(cells, np.full(cells.shape, 0.25), weight=0.5)
    client.memory = {"round": np.array(round), "empty": np.zeros((0, 3), np.float32)}
    return client


def keep(folder: Path, *rounds: int) -> None:
    for round in rounds:
        state = SiteState(folder, run=RUN, site="north")
        state.restore(make_site(), round, has_reported=True)
        state.save(trained(round), round)


def restored(folder: Path, round: int, *, has_reported: bool = True, site: str = "north") -> Client:
    client = make_site()
    SiteState(folder, run=RUN, site=site).restore(client, round, has_reported=has_reported)
    return client


def place(folder: Path) -> Path:
    return SiteState(folder, run=RUN, site="north").folder


def test_a_site_goes_on_from_its_latest_state(tmp_path: Path) -> None:
    state = SiteState(tmp_path, run=RUN, site="north")
    state.restore(make_site(), 0, has_reported=False)
    state.save(trained(0), 0)
    found, wanted = restored(tmp_path, 5), trained(0)
    for name, array in wanted.state().items():
        assert found.state()[name].tobytes() == array.tobytes(), name
        assert found.state()[name].dtype == array.dtype


def test_a_round_that_is_asked_for_again_starts_as_before(tmp_path: Path) -> None:
    state = SiteState(tmp_path, run=RUN, site="north")
    state.restore(make_site(), 0, has_reported=False)
    state.save(trained(0), 0)
    keep(tmp_path, 3, 4)
    assert saved_rounds(place(tmp_path)) == [4, 5]
    assert int(restored(tmp_path, 4).memory["round"]) == 3
    keep(tmp_path, 4)
    assert saved_rounds(place(tmp_path)) == [4, 5]
    assert int(restored(tmp_path, 9).memory["round"]) == 4


def test_the_first_round_again_starts_from_untouched_labels(tmp_path: Path) -> None:
    state = SiteState(tmp_path, run=RUN, site="north")
    state.restore(make_site(), 0, has_reported=False)
    state.save(trained(0), 0)
    assert restored(tmp_path, 0, has_reported=False).memory == {}


def test_a_state_that_is_gone_is_not_replaced_by_untouched_labels(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"state before round 3 is not there; restore"):
        restored(tmp_path, 3)
    state = SiteState(tmp_path, run=RUN, site="north")
    state.restore(make_site(), 0, has_reported=False)
    state.save(trained(0), 0)
    keep(tmp_path, 3, 4)
    with pytest.raises(UserError, match=r"state before round 2 is not there; restore"):
        restored(tmp_path, 2)


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def foreign(path: Path) -> None:
    path.write_text("not a state")


@pytest.mark.parametrize("damage", [flip_byte, truncate, foreign])
def test_damage_is_one_line(tmp_path: Path, damage: object) -> None:
    SiteState(tmp_path, run=RUN, site="north").save(trained(0), 0)
    damage(round_file(place(tmp_path), 1))
    with pytest.raises(UserError, match=r"round-000001.*damaged state of the site") as caught:
        restored(tmp_path, 1)
    assert "\n" not in str(caught.value)


def test_what_belongs_to_another_site_or_other_labels_is_refused(tmp_path: Path) -> None:
    SiteState(tmp_path, run=RUN, site="north").save(trained(0), 0)
    with pytest.raises(UserError, match="belongs to other labels"):
        SiteState(tmp_path, run=RUN, site="north").restore(make_site(1), 1, has_reported=True)
    place(tmp_path).rename(tmp_path / RUN / "site-south")
    with pytest.raises(UserError, match="belongs to 'north'"):
        restored(tmp_path, 1, site="south")


def test_names_lead_to_no_other_folder(tmp_path: Path) -> None:
    for run in ("../up", "", "a/b", "é"):
        with pytest.raises(UserError, match="letters and digits"):
            SiteState(tmp_path, run=run, site="north")
    assert SiteState(tmp_path, run=RUN, site="../..").folder.parent == tmp_path / RUN


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left.*free some space"):
        SiteState(tmp_path, run=RUN, site="north").save(trained(0), 0)


def test_a_disk_that_cannot_be_written_leaves_the_state_before(tmp_path: Path) -> None:
    state = SiteState(tmp_path, run=RUN, site="north")
    state.save(trained(0), 0)
    (place(tmp_path) / "round-000002.safetensors").mkdir()  # nothing can be renamed to it
    with pytest.raises(UserError, match="cannot be written"):
        state.save(trained(1), 1)
    (place(tmp_path) / "round-000002.safetensors").rmdir()
    assert int(restored(tmp_path, 1).memory["round"]) == 0
