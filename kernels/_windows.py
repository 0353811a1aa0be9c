"""Windows that are moved over an image: how many there are, and where the first one lies."""

from autobatch.kernels._errors import ArgumentError
from autobatch.kernels._jit import inline
from autobatch.kernels._op import wrong

_LARGEST = 2**31 - 1


def positive(name, what, pair):
    """Check that both sizes of a window, or both steps, are at least 1."""
    if min(pair) < 1:
        raise ArgumentError(f"{name}: {what} is {list(pair)}\n  expected  two whole numbers from 1 on")
    if max(pair) > _LARGEST:
        raise ArgumentError(f"{name}: {what} is {list(pair)}\n  expected  numbers up to {_LARGEST:,}")


def windows(name, shapes, size, window, stride, is_valid):
    """Return along one dim how many windows there are, and how many numbers before the image the first one begins."""
    if not is_valid:
        count = -(-size // stride)
        return count, max(0, (count - 1) * stride + window - size) // 2
    if window > size:
        problem = f"a window of {window} in an image of {size}"
        raise wrong(name, problem, shapes, "windows no larger than the image", "is_valid=False pads the image with zeros")
    return -(-(size - window + 1) // stride), 0


@inline
def inside(place, stride, count, size):
    """Of `count` places at distances `stride`, the first inside of the image, and the end of those inside."""
    first, end = 0, count
    if place < 0:
        first = min(count, (stride - 1 - place) // stride)
    if place + (count - 1) * stride >= size:
        end = max(first, (size - place + stride - 1) // stride)
    return first, end


def geometry(choose):
    """Draw sizes of an image and of a window, strides, and whether windows stay inside."""
    sizes, is_valid = [choose.integer(1, 6) for _ in range(2)], bool(choose.integer(0, 1))
    window = [choose.integer(1, min(n, 4) if is_valid else 4) for n in sizes]
    return sizes, window, [choose.integer(1, 3) for _ in range(2)], is_valid
