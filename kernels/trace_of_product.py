"""Trace of x yᵀ for two matrices of the same dims (a vector is a column): Σ x ∘ y. Its kernels are those of `dot_product`."""

from autobatch.kernels._op import Op, Sample, Shape, Tensor, common_batch, wrong
from autobatch.kernels.distances import DOT_PRODUCT


def _shape(shapes):
    x, y = shapes
    if x.dims != y.dims or len(x.dims) > 2:
        problem = "the dims differ" if x.dims != y.dims else f"{len(x.dims)} dims"
        cure = (
            "transpose one side" if x.dims == y.dims[::-1] else "dot_product, which takes any dims" if x.dims == y.dims else ""
        )
        raise wrong(
            "trace_of_product", problem, shapes, "two matrices (or vectors) of the same dims, equal batch sizes or 1", cure
        )
    return Shape((1,), common_batch("trace_of_product", shapes))


def _samples(choose):
    dims, batch = choose.dims(1, 2), choose.batch()
    return Sample(tuple(Tensor(Shape(dims, batch if choose.integer(0, 2) else 1)) for _ in range(2)))


TRACE_OF_PRODUCT = Op(
    name="trace_of_product",
    doc="tr(x zᵀ) = Σ x ∘ z of two matrices.    dx += dy z    dz += dy x",
    shape=_shape,
    lower=DOT_PRODUCT.lower,
    reference=DOT_PRODUCT.reference,
    samples=_samples,
    shapes="(r,c), (r,c) -> (1,)",
)
