"""FlowEdit inside the host equals the library's, in as few calls of the network as its captions allow."""

import pytest

from tests.host import inside

CALLS = {  # 3 steps, 2 pictures
    "captions of one bucket": [4, 4, 4],
    "captions of two buckets": [2] * 6,
    "guided": [8, 8, 8],
    "guided, target only": [2] * 9,
    "plain steps at the end": [4, 2, 2],
}


@pytest.fixture(scope="module")
def found(host_path, tmp_path_factory) -> dict:
    return inside.run("edit_inside.py", tmp_path_factory.mktemp("flowedit"))


@pytest.mark.parametrize("case", CALLS)
def test_equals_the_library(found, case):
    assert found[case]["change"] > 0.05, "it changes nothing: the comparison proves nothing"
    assert found[case]["distance"] < 1e-4


@pytest.mark.parametrize("case", CALLS)
def test_source_and_target_share_a_call_where_they_can(found, case):
    assert found[case]["calls"] == CALLS[case]
