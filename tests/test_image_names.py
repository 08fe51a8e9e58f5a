"""Names of generated images, read as their authors wrote them."""

from __future__ import annotations

import pytest

from pidm_core import named_pair, without_seed

A, B = "0002_c1s1_000000_00", "0001_c2s1_000000_00"


@pytest.mark.parametrize(
    "name",
    [
        f"{A}_2_{B}_vis",
        f"{A}_2_{B}_vis_1",
        f"{A}_2_{B}_vis_seed3",
        f"{A}_2_{B}",
        f"{A}.jpg___{B}.jpg_vis",
        f"{A}.JPEG_2_{B}.jpeg_vis_2",
        f"{A}_to_{B}",
    ],
)
def test_a_name_tells_source_and_target(name: str) -> None:
    assert named_pair(name) == (A, B)


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("a_2_b_vis", "a_2_b"),
        ("a_2_b_vis_1", "a_2_b"),
        ("img_visit_3_2_x_vis_1", "img_visit_3_2_x"),
        ("img_vis_3_2_x_vis_1", "img_vis_3_2_x"),
        ("img_visit_3_to_x", "img_visit_3_to_x"),
        ("a", "a"),
    ],
)
def test_the_seed_stands_after_the_last_vis(name: str, condition: str) -> None:
    assert without_seed(name) == condition


def test_known_names_say_where_to_cut() -> None:
    name = "a_2_b_2_c_vis"
    assert named_pair(name) == ("a_2_b", "c")
    assert named_pair(name, targets={"b_2_c"}) == ("a", "b_2_c")
    assert named_pair(name, sources={"a", "a_2_b"}, targets={"b_2_c", "c"}) == ("a_2_b", "c")
    assert named_pair(name, sources={"a_2_b"}, targets={"b_2_c"}) is None
    assert named_pair("0002_c1_gan") is None


def test_a_name_may_itself_end_in_an_ending() -> None:
    """As 18 images of Market-1501's gallery do: 1488_c3s3_071344_02.jpg.jpg."""
    name = f"{A}.jpg_2_{B}.jpg_vis"
    assert named_pair(name, targets={f"{B}.jpg"}) == (A, f"{B}.jpg")
    assert named_pair(name, sources={f"{A}.jpg"}, targets={B}) == (f"{A}.jpg", B)
    assert named_pair(name, sources={A}, targets={B}) == (A, B)
