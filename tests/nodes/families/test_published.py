"""The weights of published models, counted by the patterns of the table of families on the meta device."""

from __future__ import annotations

from functools import cache

import pytest

from benchmarks.published import PUBLISHED, Published
from benchmarks.weights import Counted, counted, family_row, print_families
from scripts.environment import ROOT

PAYS = 0.05  # a share from which a family gets a table
# From an earlier, separate count, in millions: all parameters, and the modulation of the blocks and the last layer. On
# HunyuanVideo's classes it includes the token refiner's modulation, which depends on the prompt and gets no table.
KNOWN = {
    "FLUX.1 dev": (11901.4, 3247.4),
    "FLUX.1 schnell": (11891.2, 3247.4),
    "FLUX.2 dev": (32223.3, 641.7),
    "FLUX.2 klein 9B": (9078.6, 285.2),
    "FLUX.2 klein 4B": (3875.5, 160.4),
    "Qwen-Image": (20430.4, 6815.9),
    "Z-Image": (6154.9, 127.3),
    "Lumina2": (2609.8, 266.9),
    "HunyuanImage 2.1": (17425.8, 4702.6),
    "HunyuanImage 2.1 distilled": (17453.3, 4702.6),
    "HunyuanVideo": (12821.0, 3455.1),
    "HunyuanVideo 1.5": (8326.6, 2744.4),
    "LongCat-Image": (6270.7, 1718.1),
    "Ovis-Image": (7370.4, 1463.2),
    "MageFlow": (4115.7, 1378.3),
    "Lens": (4104.2, 1364.6),
    "AuraFlow": (6842.9, 2283.8),
    "SD3 Medium": (2028.3, 675.2),
    "SD3.5 Medium": (2243.2, 767.3),
    "SD3.5 Large": (8056.6, 2686.3),
    "HiDream-I1": (17105.7, 2530.7),
    "Chroma": (8900.0, 278.3),
}
TOTALS = {"Krea 2": 12820.1, "JoyImage": 16263.7}  # that count's modulation includes parameters that are no layers
REFINER = {"HunyuanImage 2.1": 51.4, "HunyuanImage 2.1 distilled": 51.4, "HunyuanVideo": 37.8, "HunyuanVideo 1.5": 16.8}


@cache
def count_of(name: str) -> Counted:
    return counted(PUBLISHED[name])


@pytest.mark.parametrize("name", KNOWN)
def test_the_parameters_are_those_counted_elsewhere(pack, name):
    whole, modulation = KNOWN[name]
    found, rounded = count_of(name), 0.101 if name in REFINER else 0.051
    assert found.whole / 1e6 == pytest.approx(whole, abs=0.051)
    assert found.layers / 1e6 == pytest.approx(modulation - REFINER.get(name, 0), abs=rounded)


@pytest.mark.parametrize("name", TOTALS)
def test_the_whole_is_that_counted_elsewhere(pack, name):
    assert count_of(name).whole / 1e6 == pytest.approx(TOTALS[name], abs=0.051)


def test_qwen_image_in_fp8_needs_13_6_gb_in_the_steps(pack):
    row = family_row("Qwen-Image", PUBLISHED["Qwen-Image"], count_of("Qwen-Image"))
    assert "| 20430.4 | 6815.9 | 33.4% |" in row and "| 20.4 -> 13.6 |" in row and "| 4.44 |" in row


def test_what_is_too_small_is_said_with_the_share_of_published_models(pack, bench):
    families = bench.module("comfyui.families").FAMILIES
    shares: dict[str, list[float]] = {family.label: [] for family in families}
    for name in PUBLISHED:
        shares[count_of(name).family.label].append(count_of(name).share)
    modulation, small = bench.module("comfyui.modulation"), {}
    for family in families:
        if not family.modulation and shares[family.label] and max(shares[family.label]) < PAYS:
            low, high = f"{min(shares[family.label]):.1%}", f"{max(shares[family.label]):.1%}"
            small[family.label] = f"{high if low == high else f'{low[:-1]} to {high}'} {modulation.SMALL}"
    assert {label: why for label, why in modulation.NO_TABLE.items() if modulation.SMALL in why} == small


def test_every_family_with_a_table_spares_enough(pack):
    tables = [name for name in PUBLISHED if count_of(name).family.modulation]
    assert tables and all(count_of(name).share > PAYS for name in tables)


def test_two_prompts_with_pooled_text_have_rows_of_their_own(pack):
    found = count_of("Qwen-Image")
    one, two = (family_row("a model", Published("", {}, "", pooled), found) for pooled in (False, True))
    assert one.endswith("| 89 to 133 |") and two.endswith("| 177 to 266 |")


def test_the_page_on_performance_holds_the_tables_of_families_as_they_are_printed(pack, capsys):
    print_families({name: count_of(name) for name in PUBLISHED})
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for table in capsys.readouterr().out.split("\n\n"):
        assert table.strip() in page


@pytest.mark.parametrize("page", ["README.md", "README.zh.md"])
def test_the_readmes_table_has_the_figures_of_the_page_on_performance(pack, page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    rows = [row for line in lines if (row := line.strip("| ").split(" | "))[0] in PUBLISHED and "->" in line]
    assert "Qwen-Image" in [name for name, *_ in rows]
    for name, *cells in rows:
        full = family_row(name, PUBLISHED[name], count_of(name)).strip("| ").split(" | ")
        assert cells == [full[5], full[4], full[3]], name
