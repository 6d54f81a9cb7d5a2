"""Shifted-window attention as one kernel for NVIDIA's Hopper GPUs, for bfloat16 inference.

What XLA does in seven passes over device memory (shift, partition, scores, bias and mask, softmax,
product, and both rearrangements back) happens here on one read of the packed qkv and one write.
The mathematics is `swin.WindowAttention`'s (Liu et al. 2021, arXiv 2103.14030).

A window of 64 tokens is one tile of Hopper's matrix unit, and its copy engine (TMA) moves boxes of
up to five dimensions between device and shared memory; what of a box lies outside the array is read
as zeros and not written. Hence:

* A program works on one window after another, for up to four heads. One warpgroup (128 threads)
  orders copies ahead into a ring of shared memory; one for each head computes.
* Heads of 24 channels are boxes of 32, filled up with zeros.
* Windows that the shift has cut at the grid's border consist of parts that do not attend to one
  another. They are not put together: each part has a window to itself, whose rest lies outside the
  grid. So there is one more window along each side than in the unshifted grid.
"""

import dataclasses
import inspect
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

WINDOW = 8
TOKENS = WINDOW**2
CHANNELS = 32  # of a head in shared memory
IN_FLIGHT = 12  # windows of one head each that are in shared memory or on their way
PROCESSORS = 132  # of an H100; each runs one program at a time
MASKED = -1e30  # Swin adds -100, whose weight is below float32's smallest normal number


def window_attention(
    qkv: jax.Array,
    bias: jax.Array,
    *,
    side: int,
    window: int,
    shift: int,
    interpret: bool = False,
) -> jax.Array:
    """Attends within the (shifted) windows of token grids.

    Args:
        qkv: [B, side**2, 3 * width] in row-by-row token order; queries, keys and values each hold
            their heads, of 8, 16, 24 or 32 channels, one after another.
        bias: relative position bias [heads, 64, 64] (query, key), float32.
        side: tokens along each side of the grid, a multiple of 8.
        window: tokens along each side of a window: 8.
        shift: by how many tokens windows are shifted, 0 or 4.
        interpret: emulate the kernel, slowly, on any device (jax 0.11).

    Returns:
        [B, side**2, width] in the type of `qkv`: every token's mixed values, unprojected.

    Raises:
        ValueError: the windows or heads have another size.
    """
    n_clips, n_tokens, triple = qkv.shape
    width, heads = triple // 3, len(bias)
    dim = width // heads
    if window != WINDOW or dim > CHANNELS or dim % 8:
        raise ValueError(f"no kernel for windows of {window} tokens and heads of {dim} channels")
    together = math.gcd(heads, 4)  # heads of a program
    slots = IN_FLIGHT // together
    per_side = side // WINDOW + bool(shift)
    n_windows = n_clips * per_side**2
    programs = min(n_windows, max(1, PROCESSORS * together // heads))
    tokens = qkv.reshape(n_clips, side, side, 3 * heads, dim)
    # The interpreter knows no places before an array's first one: there they are filled in.
    before = shift if interpret else 0
    if before:
        tokens = jnp.pad(tokens, ((0, 0), (before, 0), (before, 0), (0, 0), (0, 0)))
    read = partial(_read, interpret=interpret)
    write = partial(_write, interpret=interpret)
    product = partial(_product, interpret=interpret)

    def kernel(qkv_ref, bias_ref, out_ref, ring, mixed, full, free):
        first_head = lax.axis_index("heads") * together
        program = lax.axis_index("program")
        worker = lax.axis_index("worker")
        steps = (n_windows - program + programs - 1) // programs

        def place(step):
            """Clip, row and column of the window that a step works on."""
            index = program + step * programs
            clip, index = lax.div(index, per_side**2), lax.rem(index, per_side**2)
            return clip, lax.div(index, per_side), lax.rem(index, per_side)

        def box(ref, clip, row, column, head):
            rows, columns = (pl.ds(i * WINDOW - shift + before, WINDOW) for i in (row, column))
            return ref.at[clip, rows, columns, head, pl.ds(0, CHANNELS)]

        @pl.when(worker == together)
        def _copy():
            @pl.loop(0, steps)
            def _step(step):
                slot = lax.rem(step, slots)
                pl.when(step >= slots)(lambda: plgpu.barrier_wait(free.at[slot]))
                for part in range(3):
                    plgpu.copy_gmem_to_smem(
                        box(qkv_ref, *place(step), pl.ds(part * heads + first_head, together)),
                        ring.at[slot, part].transpose((1, 2, 0, 3)),
                        full.at[slot],
                    )

            @pl.loop(lax.max(steps - slots, 0), steps)
            def _rest(step):
                plgpu.barrier_wait(free.at[lax.rem(step, slots)])

        @pl.when(worker < together)
        def _compute():
            head = first_head + worker
            head_bias = _load(bias_ref.at[head], optimized=False)
            query, key = (
                plgpu.broadcasted_iota(jnp.int32, (TOKENS, TOKENS), axis, layout=plgpu.Layout.WGMMA)
                for axis in (0, 1)
            )
            # Which pairs lie in different halves: 1 for upper and lower, 2 for left and right.
            apart = query // (TOKENS // 2) ^ key // (TOKENS // 2)
            apart += 2 * (query // (WINDOW // 2) % 2 ^ key // (WINDOW // 2) % 2)

            @pl.loop(0, steps)
            def _step(step):
                slot = lax.rem(step, slots)
                clip, row, column = place(step)
                plgpu.barrier_wait(full.at[slot])
                q, k, v = (ring.at[slot, part, worker] for part in range(3))
                # Base 2, the GPU's own: log2(e) is in this factor and in the bias.
                scores = product(read(q), k, transpose=True) * (dim**-0.5 * math.log2(math.e))
                scores += head_bias
                if shift:
                    # The border cuts the first and the last row and column of windows.
                    cut = jnp.where(lax.rem(row, per_side - 1) == 0, 1, 0)
                    cut += jnp.where(lax.rem(column, per_side - 1) == 0, 2, 0)
                    scores = jnp.where((apart & cut) != 0, MASKED, scores)
                highest = jnp.max(scores, axis=1)
                weights = jnp.exp2(scores - lax.broadcast_in_dim(highest, scores.shape, [0]))
                total = jnp.sum(weights, axis=1)
                values = product(weights.astype(qkv.dtype), v)
                values *= lax.broadcast_in_dim(1.0 / total, values.shape, [0])
                # Written from here two steps ago: that copy has to have read it all.
                plgpu.wait_smem_to_gmem(1, wait_read_only=True)
                own = mixed.at[lax.rem(step, 2), worker]
                write(own, values.astype(qkv.dtype))
                plgpu.commit_smem()
                plgpu.barrier_arrive(free.at[slot])
                plgpu.copy_smem_to_gmem(own, box(out_ref, clip, row, column, head))

            plgpu.wait_smem_to_gmem(0)

    tile = (WINDOW, WINDOW, CHANNELS)
    swizzle = (plgpu.SwizzleTransform(CHANNELS * qkv.dtype.itemsize),)
    out = plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((*tokens.shape[:3], heads, dim), qkv.dtype),
        grid=(heads // together, programs),
        grid_names=("heads", "program"),
        num_threads=together + 1,
        thread_name="worker",
        scratch_types=(
            plgpu.SMEM((slots, 3, together, *tile), qkv.dtype, transforms=swizzle),
            plgpu.SMEM((2, together, *tile), qkv.dtype, transforms=swizzle),
            plgpu.Barrier(num_arrivals=3, num_barriers=slots),
            plgpu.Barrier(num_arrivals=together, num_barriers=slots),
        ),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane
        ),
        interpret=plgpu.InterpretGPUParams() if interpret else None,  # pyright: ignore[reportAttributeAccessIssue]
        kernel_name="window_attention",
    )(tokens, bias * math.log2(math.e))
    return out[:, before:, before:].reshape(n_clips, n_tokens, width)


# The interpreter knows neither the views that the matrix unit needs nor products from registers.


def _read(ref, *, interpret: bool) -> jax.Array:
    """A window in shared memory, [8, 8, channels], as a matrix in registers."""
    return ref[...].reshape(TOKENS, CHANNELS) if interpret else _load(_matrix(ref))


def _write(ref, matrix: jax.Array, *, interpret: bool) -> None:
    """The inverse of `_read`."""
    if interpret:
        ref[...] = matrix.reshape(ref.shape)
    else:
        _matrix(ref)[...] = matrix


def _product(a: jax.Array, ref, *, transpose: bool = False, interpret: bool) -> jax.Array:
    """Product of a matrix in registers and a window in shared memory, summed in float32."""
    if interpret:
        b = _read(ref, interpret=True)
        return lax.dot(a, b.T if transpose else b, preferred_element_type=jnp.float32)
    b = _matrix(ref).T if transpose else _matrix(ref)

    def multiply(accumulator):
        plgpu.wgmma(accumulator, a, b)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((TOKENS, b.shape[1]), jnp.float32))


def _matrix(ref):
    """A window in shared memory as the matrix [64, channels], in the matrix unit's terms.

    It works on tiles of eight rows, each in one piece of memory, which is how the rows lie.
    """
    tiles = ref.reshape(TOKENS // 8, 1, 8, CHANNELS)
    untile = plgpu.TilingTransform((8, CHANNELS)).undo(tiles.type)
    return dataclasses.replace(tiles, transforms=(*tiles.transforms, untile))


def _load(ref, *, optimized: bool = True) -> jax.Array:
    """A matrix of any memory in registers, laid out as the matrix unit wants it."""
    # jax 0.10 asks for an index, later ones warn of it.
    index = inspect.signature(plgpu.load).parameters["idx"]
    indices = ((),) if index.default is index.empty else ()
    return plgpu.load(ref, *indices, layout=plgpu.Layout.WGMMA, optimized=optimized)
