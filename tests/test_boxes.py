"""Boxes of numbers and lists."""

import pytest

import autobatch as ab


def test_boxes():
    box = ab.UnsignedValue(3)
    box.set(4)
    assert box.get() == 4 and ab.FloatValue().get() == 0.0
    many = ab.FloatVectorValue([1, 2.5])
    assert many.get() == [1.0, 2.5] and many.size() == len(many) == 2
    indices = ab.UnsignedVectorValue(range(3))
    indices.set([7])
    assert indices.get() == [7] and indices.size() == len(indices) == 1
    for make in (lambda: ab.UnsignedValue(-1), lambda: ab.UnsignedVectorValue([2, -1])):
        with pytest.raises(OverflowError, match="expected  a whole number from 0 on"):
            make()
    for make in (
        lambda: ab.UnsignedValue(1.5),
        lambda: ab.FloatValue("x"),
        lambda: ab.FloatVectorValue([None]),
        lambda: ab.UnsignedVectorValue(True),
    ):
        with pytest.raises(TypeError, match="expected  a"):
            make()
