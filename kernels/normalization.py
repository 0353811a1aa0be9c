"""Normalisation: of the numbers of each element of the minibatch (`layer_norm`), of its length (`weight_norm`).

    layer_norm     y = g ∘ z + b,  z = (x - μ) / q,  q = s + 1e-8          μ, s: mean and population deviation of x
                   db += dy    dg += dy ∘ z    dx += (h - mean h - z q / s mean(h ∘ z)) / q  with h = dy ∘ g
    weight_norm    y = g w / ‖w‖
                   dg += w·dy / ‖w‖    dw += g (dy - w (w·dy) / ‖w‖²) / ‖w‖

On a card a team takes an element, mean and deviation are found in two passes of its lanes over x, as on a processor: the second
finds x in the cache. Gradients of what was stretched go number by number of the argument, so nothing is added up in memory.

Where s is 0 the term with 1 / s is 0: the subgradient that the deviation has there.
Sources: Ba, Kiros, Hinton, Layer normalization (2016); Salimans, Kingma, Weight normalization (2016); 1e-8 is DyNet's.
"""

import numpy as np

from autobatch.kernels import _math
from autobatch.kernels._elementwise import _walk, broadcast_shape
from autobatch.kernels._jit import ACCUMULATE, FLAGS, ITEMS, SIZES, inline, integers, item, kernel, number
from autobatch.kernels._lanes import items, joined, lane, lanes, leader, parts, width
from autobatch.kernels._op import Lowering, Op, Operand, Sample, Shape, Tensor, common_batch, wrong
from autobatch.kernels._reduce import (
    INNER,
    LENGTH,
    OUTER,
    PIECES,
    all_joined,
    as_spread,
    by_lane,
    end_result,
    first_number,
    first_result,
    number_step,
    piece_of,
    pieces_or_numbers,
    quotient,
    remainder,
    spread,
    start_of,
    turns,
    walk,
)

# layer_norm -----------------------------------------------------------------------------------------------------------
# sizes: batch of y; numbers of one element of x, g, b; from one element to the next of x, g, b (0 for those without a batch);
# where the walks (`_reduce.walk`) of x, g, b begin, which tell of each of their numbers where in an element of y it is used;
# then the walk over one element of y: its numbers, dims, extents, strides of x, g, b; then those three
_SIZE, _STEP, _WALKS, _AT = 1, 4, 7, 10


@inline
def _from(x, first):
    """x - first; here, since sums may be reordered, and this must not."""
    return x - first


@inline
def _centred(x, first, mean):
    """x less the mean, which is given as the distance from the first number."""
    return (x - first) - mean


@inline(reductions=True)
def _statistics(x, at, size):
    """First number, mean as the distance from it, deviation, and 1 / (deviation + 1e-8)."""
    first, total, squares = x[at], number(0, x), number(0, x)
    for j in lanes(size):
        total += _from(x[at + j], first)
    mean = joined(total) / number(size, first)
    for j in lanes(size):
        d = _centred(x[at + j], first, mean)
        squares += d * d
    s = _math.sqrt(joined(squares) / number(size, first))
    return first, mean, s, number(1, first) / (s + number(1e-8, first))


@inline
def _begin(sizes, k, o):
    """Where row o of the walk begins in argument k."""
    dims, at, d = sizes[_AT + 1], 0, 1
    while d < dims and o > 0:
        at += remainder(o, sizes[_AT + 2 + d]) * sizes[_AT + 2 + (1 + k) * dims + d]
        o = quotient(o, sizes[_AT + 2 + d])
        d += 1
    return at


@inline
def _stride(sizes, k):
    """Stride of argument k along a row of the walk."""
    return sizes[_AT + 2 + (1 + k) * sizes[_AT + 1]]


@inline
def _place(sizes, k, q):
    """Which number of an element of argument k goes with number q of an element of y."""
    if sizes[_SIZE + k] == sizes[_AT]:
        return q
    inner = sizes[_AT + 2]
    return _begin(sizes, k, quotient(q, inner)) + remainder(q, inner) * _stride(sizes, k)


@kernel
def layer_norm(ins, T):
    """y = g (x - μ) / (s + 1e-8) + b."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    batch, total, inner = sizes[0], sizes[_AT], sizes[_AT + 2]
    sx, sg, sb = _stride(sizes, 0), _stride(sizes, 1), _stride(sizes, 2)
    for i in range(n):
        y, x, g, b = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for e in range(batch):
            first, mean, _, scale = _statistics(x, e * sizes[_STEP], sizes[_SIZE])
            for o in range(total // inner):
                at_x, at_g = e * sizes[_STEP] + _begin(sizes, 0, o), e * sizes[_STEP + 1] + _begin(sizes, 1, o)
                at_b, to = e * sizes[_STEP + 2] + _begin(sizes, 2, o), e * total + o * inner
                if sx == 1 and sg == 1 and sb == 1:
                    for j in range(inner):
                        y[to + j] = _centred(x[at_x + j], first, mean) * scale * g[at_g + j] + b[at_b + j]
                else:
                    for j in range(inner):
                        z = _centred(x[at_x + j * sx], first, mean) * scale
                        y[to + j] = z * g[at_g + j * sg] + b[at_b + j * sb]


def _elements(sizes):
    """Lanes and parts where a team takes an element."""
    return sizes[_AT], sizes[0]


@layer_norm.on_card(**as_spread(_elements))
def layer_norm_card(ins, T):
    """Number by number of y."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    batch, total = sizes[0], sizes[_AT]
    for i in items(n):
        y, x, g, b = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T), item(ins, 3, i, T)
        for e in parts(batch):
            at_x, at_g, at_b = e * sizes[_STEP], e * sizes[_STEP + 1], e * sizes[_STEP + 2]
            first, mean, _, scale = _statistics(x, at_x, sizes[_SIZE])
            for q in lanes(total):
                z = _centred(x[at_x + _place(sizes, 0, q)], first, mean) * scale
                y[e * total + q] = z * g[at_g + _place(sizes, 1, q)] + b[at_b + _place(sizes, 2, q)]


@kernel(reductions=True)
def layer_norm_gradient_x(ins, T):
    """dx = or += (h - mean h - z q / s mean(h ∘ z)) / q with h = dy ∘ g; of an x that is as large as y."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    batch, total, inner, sg = sizes[0], sizes[_AT], sizes[_AT + 2], _stride(sizes, 1)
    count = number(total, T)
    for i in range(n):
        dx, dy, x, g = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for e in range(batch):
            first, mean, s, scale = _statistics(x, e * total, total)
            h_total, hz_total = number(0, T), number(0, T)
            for o in range(total // inner):
                at, at_g = e * total + o * inner, e * sizes[_STEP + 1] + _begin(sizes, 1, o)
                if sg == 1:
                    for j in range(inner):
                        h = dy[at + j] * g[at_g + j]
                        h_total += h
                        hz_total += h * _centred(x[at + j], first, mean)
                else:
                    for j in range(inner):
                        h = dy[at + j] * g[at_g + j * sg]
                        h_total += h
                        hz_total += h * _centred(x[at + j], first, mean)
            h_total /= count
            slope = hz_total / count * scale / s if s > 0 else number(0, s)
            scale = scale if total > 1 else number(0, scale)  # one number less its mean is 0, whatever it is
            for o in range(total // inner):
                at, at_g = e * total + o * inner, e * sizes[_STEP + 1] + _begin(sizes, 1, o)
                for j in range(inner):
                    h = dy[at + j] * g[at_g + j * sg]
                    d = (h - h_total - _centred(x[at + j], first, mean) * slope) * scale
                    dx[at + j] = dx[at + j] + d if add else d


@layer_norm_gradient_x.on_card(**as_spread(_elements))
def layer_norm_gradient_x_card(ins, T):
    """The same, number by number of x."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    batch, total = sizes[0], sizes[_AT]
    for i in items(n):
        dx, dy, x, g = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for e in parts(batch):
            at, at_g = e * total, e * sizes[_STEP + 1]
            first, mean, s, scale = _statistics(x, at, total)
            h_total, hz_total = number(0, T), number(0, T)
            for q in lanes(total):
                h = dy[at + q] * g[at_g + _place(sizes, 1, q)]
                h_total += h
                hz_total += h * _centred(x[at + q], first, mean)
            h_mean, hz_total = joined(h_total) / number(total, T), joined(hz_total)
            slope = hz_total / number(total, T) * scale / s if s > 0 else number(0, s)
            scale = scale if total > 1 else number(0, scale)  # one number less its mean is 0, whatever it is
            for q in lanes(total):
                h = dy[at + q] * g[at_g + _place(sizes, 1, q)]
                d = (h - h_mean - _centred(x[at + q], first, mean) * slope) * scale
                dx[at + q] = dx[at + q] + d if add else d


@kernel(reductions=True)
def layer_norm_gradient_stretched_x(ins, T):
    """The same of an x that was stretched, or has no batch: dx = or += Σ h / q, less the other terms."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    batch, total, inner, size = sizes[0], sizes[_AT], sizes[_AT + 2], sizes[_SIZE]
    sx, sg, count = _stride(sizes, 0), _stride(sizes, 1), number(sizes[_SIZE], T)
    apart = sizes[_STEP] > 0
    for i in range(n):
        dx, dy, x, g = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for element in range(batch if apart else 1):
            start = element * size
            first, mean, s, scale = _statistics(x, start, size)
            scale = scale if size > 1 else number(0, scale)
            h_total, hz_total = number(0, T), number(0, T)
            if not add:
                for j in range(size):
                    dx[start + j] = 0
            for e in range(element if apart else 0, element + 1 if apart else batch):
                for o in range(total // inner):
                    at, at_x = e * total + o * inner, start + _begin(sizes, 0, o)
                    at_g = e * sizes[_STEP + 1] + _begin(sizes, 1, o)
                    for j in range(inner):
                        h = dy[at + j] * g[at_g + j * sg]
                        h_total += h
                        hz_total += h * _centred(x[at_x + j * sx], first, mean)
                        dx[at_x + j * sx] += h * scale
            h_total /= count
            slope = hz_total / count * scale / s if s > 0 else number(0, s)
            for j in range(size):
                dx[start + j] -= (h_total + _centred(x[start + j], first, mean) * slope) * scale


@layer_norm_gradient_stretched_x.on_card(**as_spread(_elements))
def layer_norm_gradient_stretched_x_card(ins, T):
    """The same; what goes to a number of x is summed before it is written."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    batch, total, size, w = sizes[0], sizes[_AT], sizes[_SIZE], sizes[_WALKS]
    inner, length, each = sizes[w + INNER], sizes[w + LENGTH], sizes[w + LENGTH] * sizes[w + PIECES]
    count = each if sizes[_STEP] > 0 else each * batch  # numbers of y to which one of x goes
    apart, alone = sizes[_STEP] > 0, by_lane(inner, sizes[w + OUTER], count)
    for i in items(n):
        dx, dy, x, g = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for e in parts(batch if apart else 1):
            start = e * size
            first, mean, s, scale = _statistics(x, start, size)
            scale = scale if size > 1 else number(0, scale)
            h_mean, slope = number(0, T), number(0, T)
            for writes in range(2):  # first the sums of h and h ∘ z, then dx
                h_total, hz_total, r = number(0, T), number(0, T), lane() if alone else 0
                while r < size:
                    at, own, c = start_of(sizes, w, quotient(r, inner)) + remainder(r, inner), number(0, T), first_number(alone)
                    while c < count:
                        element, rest = quotient(c, each), remainder(c, each)
                        f = at + piece_of(sizes, w, quotient(rest, length)) + remainder(rest, length) * inner
                        own += dy[(e + element) * total + f] * g[(e + element) * sizes[_STEP + 1] + _place(sizes, 1, f)]
                        c += number_step(alone)
                    own, z = all_joined(alone, own), _centred(x[start + r], first, mean)
                    if writes and (alone or leader()):
                        d = (own - h_mean - z * slope) * scale
                        dx[start + r] = dx[start + r] + d if add else d
                    h_total += own
                    hz_total += own * z
                    r += width() if alone else 1
                if not writes:  # where a team takes a number, each of its lanes has the sums
                    h_total, hz_total = all_joined(not alone, h_total), all_joined(not alone, hz_total)
                    h_mean = h_total / number(size, T)
                    slope = hz_total / number(size, T) * scale / s if s > 0 else number(0, s)


@kernel(reductions=True)
def layer_norm_gradient_g(ins, T):
    """dg = or += dy ∘ z, summed where g was stretched."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    batch, total, inner, sx, sg = sizes[0], sizes[_AT], sizes[_AT + 2], _stride(sizes, 0), _stride(sizes, 1)
    for i in range(n):
        dg, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(sizes[_SIZE + 1] * (batch if sizes[_STEP + 1] else 1)):
                dg[j] = 0
        for e in range(batch):
            first, mean, _, scale = _statistics(x, e * sizes[_STEP], sizes[_SIZE])
            for o in range(total // inner):
                at_x, at_g = e * sizes[_STEP] + _begin(sizes, 0, o), e * sizes[_STEP + 1] + _begin(sizes, 1, o)
                at = e * total + o * inner
                if sg == 0:
                    sums = number(0, T)
                    for j in range(inner):
                        sums += dy[at + j] * _centred(x[at_x + j * sx], first, mean)
                    dg[at_g] += sums * scale
                elif sg == 1 and sx == 1:
                    for j in range(inner):
                        dg[at_g + j] += dy[at + j] * (_centred(x[at_x + j], first, mean) * scale)
                else:
                    for j in range(inner):
                        dg[at_g + j * sg] += dy[at + j] * (_centred(x[at_x + j * sx], first, mean) * scale)


@layer_norm_gradient_g.on_card(**as_spread(_elements))
def layer_norm_gradient_g_card(ins, T):
    """The same; what goes to a number of g is summed before it is written, of one element after the other if g has no batch."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    batch, total, size, w = sizes[0], sizes[_AT], sizes[_SIZE + 1], sizes[_WALKS + 1]
    inner, length, count = sizes[w + INNER], sizes[w + LENGTH], sizes[w + LENGTH] * sizes[w + PIECES]
    apart, alone = sizes[_STEP + 1] > 0, by_lane(inner, sizes[w + OUTER], count)
    for i in items(n):
        dg, dy, x = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for element in parts(batch if apart else 1):
            for e in range(element if apart else 0, element + 1 if apart else batch):
                first, mean, _, scale = _statistics(x, e * sizes[_STEP], sizes[_SIZE])
                to, again, r = element * size, add or (e > 0 and not apart), lane() if alone else 0
                while r < size:
                    at, own = start_of(sizes, w, quotient(r, inner)) + remainder(r, inner), number(0, T)
                    c = first_number(alone)
                    while c < count:
                        f = at + piece_of(sizes, w, quotient(c, length)) + remainder(c, length) * inner
                        own += dy[e * total + f] * _centred(x[e * sizes[_STEP] + _place(sizes, 0, f)], first, mean)
                        c += number_step(alone)
                    own = all_joined(alone, own) * scale
                    if alone or leader():
                        dg[to + r] = dg[to + r] + own if again else own
                    r += width() if alone else 1


@kernel(reductions=True)
def layer_norm_gradient_b(ins, T):
    """db = or += dy, summed where b was stretched."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    batch, total, inner, sb = sizes[0], sizes[_AT], sizes[_AT + 2], _stride(sizes, 2)
    for i in range(n):
        db, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        if not ins[FLAGS] & ACCUMULATE:
            for j in range(sizes[_SIZE + 2] * (batch if sizes[_STEP + 2] else 1)):
                db[j] = 0
        for e in range(batch):
            for o in range(total // inner):
                at_b, at = e * sizes[_STEP + 2] + _begin(sizes, 2, o), e * total + o * inner
                if sb == 0:
                    sums = number(0, T)
                    for j in range(inner):
                        sums += dy[at + j]
                    db[at_b] += sums
                elif sb == 1:
                    for j in range(inner):
                        db[at_b + j] += dy[at + j]
                else:
                    for j in range(inner):
                        db[at_b + j * sb] += dy[at + j]


def _bias_spread(sizes):
    """Lanes and parts of the sums that are the gradient of b."""
    w, batch = sizes[_WALKS + 2], sizes[0]
    each, elements = (1, batch) if sizes[_STEP + 2] else (batch, 1)
    return spread(sizes[w + INNER], sizes[w + OUTER] * elements, sizes[w + LENGTH] * sizes[w + PIECES] * each)


@layer_norm_gradient_b.on_card(**as_spread(_bias_spread))
def layer_norm_gradient_b_card(ins, T):
    """The same, one number of b after the other."""
    n, sizes, add = ins[ITEMS], integers(ins[SIZES]), ins[FLAGS] & ACCUMULATE
    batch, total, size, w = sizes[0], sizes[_AT], sizes[_SIZE + 2], sizes[_WALKS + 2]
    inner, length, pieces = sizes[w + INNER], sizes[w + LENGTH], sizes[w + PIECES]
    each, elements = (1, batch) if sizes[_STEP + 2] else (batch, 1)
    results, alone = size * elements, by_lane(inner, sizes[w + OUTER] * elements, length * pieces * each)
    first_p, step_p, first_k, step_k = pieces_or_numbers(alone, pieces, length)
    for i in items(n):
        db, dy = item(ins, 0, i, T), item(ins, 1, i, T)
        for t in parts(turns(alone, results)):
            r = first_result(alone, t)
            while r < end_result(alone, t, results):
                element, place, own = quotient(r, size), remainder(r, size), number(0, T)
                start = element * total + start_of(sizes, w, quotient(place, inner)) + remainder(place, inner)
                for e in range(each):
                    p = first_p
                    while p < pieces:
                        at, k = start + e * total + piece_of(sizes, w, p), first_k
                        while k < length:
                            own += dy[at + k * inner]
                            k += step_k
                        p += step_p
                own = all_joined(alone, own)
                if alone or leader():
                    db[r] = db[r] + own if add else own
                r += width()


def _layer_lower(shapes, out, shared):
    steps = (s.size if s.batch > 1 else 0 for s in shapes)
    over_y = _walk([Shape(s.dims) for s in shapes], Shape(out.dims))
    walks, starts = [], []
    for s in shapes:
        dims = s.dims + (1,) * (len(out.dims) - len(s.dims))
        starts.append(_AT + len(over_y) + sum(map(len, walks)))
        walks.append(walk(Shape(out.dims), [*(d == 1 for d, _ in zip(dims, out.dims, strict=False)), False]))
    full = shapes[0].total == out.total
    return Lowering(
        layer_norm,
        (out.batch, *(s.size for s in shapes), *steps, *starts, *over_y, *(k for w in walks for k in w)),
        (
            Operand(backward=layer_norm_gradient_x if full else layer_norm_gradient_stretched_x, needs=(0, 1)),
            Operand(backward=layer_norm_gradient_g, needs=(0,)),
            Operand(backward=layer_norm_gradient_b, needs=()),
        ),
    )


def _layer_reference(x, g, b):
    rank = max(a.ndim for a in (x, g, b))
    axes = tuple(range(x.ndim - 1))
    z = (x - x.mean(axis=axes, keepdims=True)) / (x.std(axis=axes, keepdims=True) + 1e-8)
    z, g, b = (a.reshape(*a.shape[:-1], *(1,) * (rank - a.ndim), a.shape[-1]) for a in (z, g, b))
    return g * z + b


def _apart(x):
    """Numbers that are not all nearly equal: there, a small change of x is a large one of y."""
    shift = np.where(np.arange(x[..., 0].size) % 2, 2.5, -2.5)
    return x + shift.reshape((*x.shape[:-1], 1), order="F")


def _layer_samples(choose):
    dims, batch = choose.dims(), choose.batch()

    def part():
        kept = tuple(e if choose.integer(0, 3) else 1 for e in dims)
        return Tensor(Shape(kept[: choose.integer(1, len(kept))] if choose.integer(0, 3) == 0 else kept, own()))

    def own():
        return batch if choose.integer(0, 2) else 1

    x = part().shape if choose.integer(0, 3) == 0 else Shape(dims, own())
    return Sample((Tensor(x, fit=_apart), part(), part()))


LAYER_NORM = Op(
    name="layer_norm",
    doc="g ∘ z + b with z = (x - μ) / (s + 1e-8), μ and s: mean and population deviation of each element of the minibatch.    "
    "db += dy    dg += dy ∘ z    dx += (h - mean h - z q / s mean(h ∘ z)) / q with h = dy ∘ g, q = s + 1e-8",
    shape=broadcast_shape("layer_norm"),
    lower=_layer_lower,
    reference=_layer_reference,
    samples=_layer_samples,
    shapes="dims that broadcast -> their common dims",
)


# weight_norm ----------------------------------------------------------------------------------------------------------
# sizes: numbers of one element of w, batch, from one element to the next of w, of g (0 for one without a batch)


@inline(reductions=True)
def _product(x, at_x, z, at_z, size):
    """Σ x ∘ z."""
    total = number(0, x)
    for j in lanes(size):
        total += x[at_x + j] * z[at_z + j]
    return joined(total)


@kernel
def weight_norm(ins, T):
    """y = g w / ‖w‖."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        y, w, g = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 2, i, T)
        for b in parts(batch):
            at = b * sizes[2]
            scale = g[b * sizes[3]] / _math.sqrt(_product(w, at, w, at, size))
            for j in lanes(size):
                y[b * size + j] = w[at + j] * scale


@kernel
def weight_norm_gradient_w(ins, T):
    """dw = or += g (dy - w (w·dy) / ‖w‖²) / ‖w‖, summed over the batch if w has none."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        dw, dy, w, g = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T), item(ins, 4, i, T)
        for b in range(batch):
            at, to = b * sizes[2], b * size
            squares = _product(w, at, w, at, size)
            scale, share = g[b * sizes[3]] / _math.sqrt(squares), _product(w, at, dy, to, size) / squares
            if ins[FLAGS] & ACCUMULATE or (b > 0 and sizes[2] == 0):  # each lane adds to its own numbers
                for j in lanes(size):
                    dw[at + j] += (dy[to + j] - w[at + j] * share) * scale
            else:
                for j in lanes(size):
                    dw[at + j] = (dy[to + j] - w[at + j] * share) * scale


@kernel
def weight_norm_gradient_g(ins, T):
    """dg = or += w·dy / ‖w‖, summed over the batch if g has none."""
    n, sizes = ins[ITEMS], integers(ins[SIZES])
    size, batch = sizes[0], sizes[1]
    for i in items(n):
        dg, dy, w = item(ins, 0, i, T), item(ins, 1, i, T), item(ins, 3, i, T)
        for b in range(batch):
            at, to = b * sizes[2], b * sizes[3]
            d = _product(w, at, dy, b * size, size) / _math.sqrt(_product(w, at, w, at, size))
            if leader():
                dg[to] = dg[to] + d if ins[FLAGS] & ACCUMULATE or (b > 0 and sizes[3] == 0) else d


weight_norm.on_card(work=lambda sizes: sizes[0], parts=lambda sizes: sizes[1])


def _weight_shape(shapes):
    w, g = shapes
    if g.size != 1:
        raise wrong("weight_norm", f"the gain g has {g.size} numbers", shapes, "w of any dims, g of one number")
    return Shape(w.dims, common_batch("weight_norm", shapes))


def _weight_lower(shapes, out, shared):
    w, g = shapes
    sizes = (out.size, out.batch, w.size if w.batch > 1 else 0, int(g.batch > 1))
    operands = (Operand(backward=weight_norm_gradient_w), Operand(backward=weight_norm_gradient_g, needs=(0,)))
    return Lowering(weight_norm, sizes, operands)


def _weight_reference(w, g):
    norm = np.sqrt((w * w).sum(axis=tuple(range(w.ndim - 1)), keepdims=True))
    return g.reshape(*(1,) * (w.ndim - 1), g.shape[-1]) * w / norm


def _weight_samples(choose):
    batch = choose.batch()
    w, g = (Shape(dims, batch if choose.integer(0, 2) else 1) for dims in (choose.dims(), choose.one_of([(1,), (1, 1)])))
    return Sample((Tensor(w, 0.3, 2.0), Tensor(g)))


WEIGHT_NORM = Op(
    name="weight_norm",
    doc="g w / ‖w‖ for each element of the minibatch.    dg += w·dy / ‖w‖    dw += g (dy - w (w·dy) / ‖w‖²) / ‖w‖",
    shape=_weight_shape,
    lower=_weight_lower,
    reference=_weight_reference,
    samples=_weight_samples,
    shapes="any, (1,) -> as w",
)
