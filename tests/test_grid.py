"""Grids: that the figures are of their sources, and what is said of a code that nobody has."""

import csv
import json
import re

import pytest
from conftest import DATA

from llamactl import grid
from llamactl.errors import Fault

CARBON = DATA / "carbon"


@pytest.mark.parametrize(
    ("code", "grams", "year", "country", "provider"),
    [
        ("FRA", 56.0, 2023, "FRA", ""),
        ("fra", 56.0, 2023, "FRA", ""),
        ("US-VA", 244.8, 2023, "USA", ""),  # 539.599 lb/MWh
        ("CN-GD", 441.9, 2023, "CHN", ""),
        ("europe-west9", 15.8, 2025, "FRA", "gcp"),
        ("us-east-1", 244.8, 2023, "USA", "aws"),
        ("eastus", 244.8, 2023, "USA", "azure"),
        ("ap-southeast-2", 468.3, 2025, "AUS", "aws"),
        ("swedencentral", 40.7, 2023, "SWE", "azure"),
    ],
)
def test_grids_by_their_codes(code: str, grams: float, year: int, country: str, provider: str) -> None:
    found = grid.grid(code)
    assert (found.grams, found.year, found.country, found.provider) == (grams, year, country, provider)
    assert found.code.lower() == code.lower()
    assert found.kg == grams / 1000
    assert str(found).startswith(f"{grams:g} g/kWh: {found.name}, {year} (")


def test_every_grid_has_a_source_a_year_and_a_country() -> None:
    known = grid.grids()
    assert len(known) > 300
    for code, one in known.items():
        assert one.source and one.name and one.year in (2022, 2023, 2025), code
        assert re.fullmatch("[A-Z]{3}", one.country), code
        assert 5 < one.grams < 1000, code
        if not one.provider:
            assert one.code.lower() == code and re.fullmatch("[A-Z]{3}|(US|CN)-[A-Z]{2}", one.code)


@pytest.mark.shared
@pytest.mark.skipif(not CARBON.exists(), reason="needs the development data")
def test_countries_are_as_the_source_has_them() -> None:
    mix = json.loads((CARBON / "private_infra" / "global_energy_mix.json").read_text())
    for year, table in ((2023, grid.COUNTRIES_2023), (2022, grid.COUNTRIES_2022)):
        for code, (name, grams) in table.items():
            row = mix[code]
            assert (name, grams, year) == (row["country_name"], round(row["carbon_intensity"], 1), row["year"])


@pytest.mark.shared
@pytest.mark.skipif(not CARBON.exists(), reason="needs the development data")
def test_googles_zones_lie_where_others_say() -> None:
    with (CARBON / "cloud" / "impact.csv").open(encoding="utf-8-sig") as file:
        rows = {row["region"]: row["countryIsoCode"] for row in csv.DictReader(file)}
    for code, (_, _, country) in grid.GOOGLE_2025.items():
        assert rows.get(code, country) == country or (code, country) == ("asia-east2", "HKG")


@pytest.mark.parametrize(
    ("code", "nearest"),
    [
        ("GER", "DEU (Germany)"),
        ("DE", "DEU (Germany)"),
        ("UK", "GBR (United Kingdom)"),
        ("US", "USA (United States)"),
        ("Franc", "FRA (France)"),
        ("FRAA", "FRA (France)"),
        ("virginia", "US-VA (Virginia)"),
        ("europe-west99", "europe-west9 (Paris)"),
        ("us-east-9", "us-east-"),
    ],
)
def test_an_unknown_code_is_answered_by_the_nearest(code: str, nearest: str) -> None:
    with pytest.raises(Fault) as caught:
        grid.grid(code)
    assert str(caught.value).startswith(f"--country: no grid is known as {code!r}; the nearest are {nearest}")


def test_a_code_like_no_other() -> None:
    with pytest.raises(Fault, match=r"'0'; see llamactl carbon --tables; or give --intensity"):
        grid.grid("0")
