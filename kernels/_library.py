"""Products of many items by a library, where there is one: what an op says beside its own tiles (`_gemm.py`).

kernel.on_card(stages=..., products=lambda sizes: by_library(Product(a, b, c, m, n, k)))
"""

from autobatch.kernels import _gemm
from autobatch.kernels._jit import Dense, Product, Products


def by_library(product: Product) -> Products:
    """Return what an instruction becomes from the number of items on for which `_gemm.prefers_cublas` holds.

    Operands of which each item has columns have to lie side by side, and are copied together where they do not.
    """
    each = 1  # multiplications of an item
    for count in (product.m, product.n, product.k):
        each *= count.items or count.plus
    dense = [
        Dense(x.slot, x.rows * x.columns, x.columns, x is product.c) for x in (product.a, product.b, product.c) if x.columns
    ]
    return Products(max(-(-_gemm.CUBLAS // max(each, 1)), 1), tuple(dense), (product,))
