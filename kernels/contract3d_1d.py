"""Contraction of the last dim of a tensor with a vector, (i,j,k) and (k,).

    y = Σ_k x[:,:,k] z[k]        dx[:,:,k] += dy z[k]        dz[k] += Σ dy ∘ x[:,:,k]

Column-major, a tensor (i,j,k) is a matrix (ij,k) as it lies, so this is a product of a matrix and a vector; its kernels are
those of `matmul`, with one product over all items where x is a parameter.
"""

from autobatch.kernels._op import Op, Sample, Shape, Tensor, common_batch, wrong
from autobatch.kernels.matmul import MATMUL


def _shape(shapes):
    x, z = shapes
    if len(x.dims) != 3 or z.dims[0] != z.size or z.size != x.dims[2]:
        if len(x.dims) != 3:
            problem = f"x has {len(x.dims)} dim" + ("s" if len(x.dims) > 1 else "")
        else:
            problem = f"the last dim of x is {x.dims[2]} but y has the dims {Shape(z.dims)}"
        raise wrong("contract3d_1d", problem, shapes, "x (i,j,k), y (k,)")
    return Shape(x.dims[:2], common_batch("contract3d_1d", shapes))


def _lower(shapes, out, shared):
    x, z = shapes
    i, j, k = x.dims
    return MATMUL.lower((Shape((i * j, k), x.batch), Shape((k,), z.batch)), Shape((i * j,), out.batch), shared)


def _samples(choose):
    i, j, k = (choose.integer(1, 4) for _ in range(3))
    batch = choose.batch()
    x, z = (Shape(d, batch if choose.integer(0, 2) else 1) for d in ((i, j, k), (k,)))
    return Sample((Tensor(x), Tensor(z)))


CONTRACT3D_1D = Op(
    name="contract3d_1d",
    doc=__doc__,
    shape=_shape,
    lower=_lower,
    reference=lambda x, z: (x * z).sum(axis=2),
    samples=_samples,
    shapes="(i,j,k), (k,) -> (i,j)",
    shared=lambda position: position == 0,
)
