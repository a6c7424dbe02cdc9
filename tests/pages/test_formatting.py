"""Numbers as text: what a page shows for each."""

import math

import pytest

from anyformer.pages import formatting


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (formatting.count(124_439_808), "124M"),
        (formatting.count(999_999), "1M"),
        (formatting.count(1_235_814_400), "1.24B"),
        (formatting.count(12), "12"),
        (formatting.flops(2.4e12), "2.4 TFLOP/s"),
        (formatting.flops(12.0), "12 FLOP/s"),
        (formatting.byte_size(512), "512 bytes"),
        (formatting.byte_size(16_800_123), "16.8 MB"),
        (formatting.fixed(2.5), "2.5000"),
        (formatting.fixed(math.nan), "–"),
        (formatting.number(-0.0001), "0.000"),
        (formatting.number(2.5), "2.500"),
        (formatting.number(12_345.6), "12,346"),
        (formatting.number(None), "–"),
        (formatting.clock(59.6), "1:00"),
        (formatting.clock(7384), "2:03:04"),
        (formatting.clock(360_000), "4d 4h"),
        (formatting.perplexity(1e9), "1e+304"),
        (formatting.share(0.412), "41%"),
        (formatting.share(0.0412), "4.1%"),
        (formatting.setting([1, 2.50]), "1, 2.5"),
        (formatting.setting(True), "yes"),
        (formatting.setting(None), "–"),
    ],
)
def test_formatting(text: str, said: str) -> None:
    assert text == said


def test_numbers_for_json() -> None:
    assert [formatting.finite(each, 3) for each in (None, math.nan, math.inf, 1.23456)] == [None, None, None, 1.23]
    assert formatting.finite(1.23456) == 1.23456
