"""CI gates on counts, which noise cannot touch: every row of `bench counts` holds."""

import pytest

from bench import counts


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return counts.run()


def test_every_count_holds(rows: list[dict]) -> None:
    assert [row for row in rows if row["bar"]], "nothing was measured"
    assert not [row for row in rows if row["holds"] is False], rows
