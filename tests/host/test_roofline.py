"""Predictions for all networks, ours and the host's inside a process of the host's own."""

from __future__ import annotations

import pytest

from bench import called, roofline
from bench.rates import CARDS


@pytest.fixture(scope="module")
def rows() -> dict[str, dict]:
    return {row["name"]: row for row in roofline.run()}


def test_every_row_is_a_prediction_without_a_bar(rows: dict[str, dict]) -> None:
    for row in rows.values():
        assert (row["predicted"], row["bar"], row["holds"]) == (True, None, None) and row["value"] > 0


def test_all_networks_at_all_sizes_and_no_faster_than_the_limit(rows: dict[str, dict]) -> None:
    cases = [("H200", size) for size in called.SIZES]
    for card, size in (*cases, *((card.name, roofline.ON_EVERY_CARD) for card in CARDS)):
        limit = rows[f"{card}, {size}x{size}, limit: matrix products and attention"]["value"]
        for network in roofline.NETWORKS:
            assert rows[f"{card}, {size}x{size}, {network}: forward"]["value"] > limit


def test_the_host_adds_no_operator_to_ours(rows: dict[str, dict]) -> None:
    for size in called.SIZES:
        ours, in_host = (
            rows[f"H200, {size}x{size}, {name}: operators in everything else"]["value"]
            for name in (called.OURS, called.IN_HOST)
        )
        assert in_host <= ours


def test_a_sigma_that_is_not_new_costs_less(rows: dict[str, dict]) -> None:
    for name in (called.OURS, called.IN_HOST):
        label = f"H200, 1024x1024, {name}"
        assert rows[f"{label}, same sigma: forward"]["value"] < rows[f"{label}: forward"]["value"]


def test_no_faster_without_optional_packages(rows: dict[str, dict]) -> None:
    plain = {row["name"]: row for row in roofline.run(plain=True)}
    for network in (called.OURS, called.IN_HOST):
        with_them = rows[f"H200, 1024x1024, {network}: forward"]["value"]
        assert plain[f"H200, 1024x1024, plain, {network}: forward"]["value"] >= with_them
