"""The second half of a Swin block as one kernel for NVIDIA's Hopper GPUs, for bfloat16 inference.

x + fc2(gelu(fc1(layer_norm(x)))), `swin.SwinBlock`'s second line with the tanh form of GELU, reads
every token once and writes it once. Tokens come and go by the copy engine (TMA), 64 at a time for
each warpgroup (128 threads), and the hidden layer, four times as wide, lives in registers between
two products of the matrix unit. Where both layers fit into shared memory (width 96) they stay there
and every warpgroup works by itself; otherwise the warpgroups of a program go through them in step,
and one more warpgroup orders the copies ahead.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

ROWS = 64  # tokens of a warpgroup's tile: what the matrix unit takes
PROCESSORS = 132  # of an H100; each runs one program at a time
GELU_SLOPE = math.sqrt(2.0 / math.pi)
GELU_CUBIC = 0.044715 * GELU_SLOPE


@dataclass(frozen=True)
class Tiling:
    """How a kernel divides the work.

    Attributes:
        groups: warpgroups that compute.
        chunk: hidden channels that are made at a time.
        stages: chunks of weights in shared memory, a divisor of their number; all of them: the
            weights stay.
    """

    groups: int
    stages: int
    chunk: int = 64


TILINGS = {
    96: Tiling(groups=3, stages=6),
    128: Tiling(groups=2, stages=4),
    192: Tiling(groups=2, stages=2),
}


class MlpWeights(NamedTuple):
    """What the kernel multiplies by, all of the tokens' type.

    Attributes:
        scale: of the LayerNorm, [width].
        shift: of the LayerNorm, [width].
        kernel1: first layer, [width, hidden].
        bias1: [hidden].
        kernel2: second layer, [hidden, width].
        bias2: [width].
    """

    scale: jax.Array
    shift: jax.Array
    kernel1: jax.Array
    bias1: jax.Array
    kernel2: jax.Array
    bias2: jax.Array


def serves(n_tokens: int, width: int) -> bool:
    """Whether there is a kernel for so many tokens of this width; of bigger batches always."""
    if width not in TILINGS:
        return False
    tiling = TILINGS[width]
    stay = tiling.stages * tiling.chunk == 4 * width
    return n_tokens % (ROWS if stay else tiling.groups * ROWS) == 0


def mlp(
    x: jax.Array,
    weights: MlpWeights,
    *,
    epsilon: float,
    interpret: bool = False,
) -> jax.Array:
    """Adds the MLP of the normalized tokens to the tokens.

    Args:
        x: tokens [N, width] that the kernel `serves`.
        weights: of the LayerNorm and both layers.
        epsilon: of the LayerNorm.
        interpret: emulate the kernel, slowly, on any device (jax 0.11).

    Returns:
        [N, width] in the type of `x`.

    Raises:
        ValueError: it does not serve them.
    """
    n_tokens, width = x.shape
    if not serves(n_tokens, width):
        raise ValueError(f"no kernel for {n_tokens} tokens of width {width}")
    tiling = TILINGS[width]
    groups, chunk, stages = tiling.groups, tiling.chunk, tiling.stages
    n_chunks = len(weights.bias1) // chunk
    stay = stages == n_chunks
    programs = min(PROCESSORS, n_tokens // ROWS)

    def row(ref) -> jax.Array:
        vector = plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA.reduce(0))
        return lax.broadcast_in_dim(vector, (ROWS, *vector.shape), [1])

    def column(vector: jax.Array) -> jax.Array:
        return lax.broadcast_in_dim(vector, (ROWS, width), [0])

    def add_product(total: jax.Array | None, a: jax.Array, b_ref, slot: int) -> jax.Array:
        if interpret:  # it knows no products from registers
            product = jnp.dot(a, b_ref[slot], preferred_element_type=jnp.float32)
            return product if total is None else total + product

        def multiply(sums):
            plgpu.wgmma(sums, a, b_ref.at[slot])
            return sums[...]

        if total is None:
            start = plgpu.WGMMAAccumulatorRef((ROWS, b_ref.shape[-1]), jnp.float32)
            return pl.run_scoped(multiply, start)
        accumulate = pl.run_state(lambda sums: plgpu.wgmma(sums, a, b_ref.at[slot]))
        return accumulate(plgpu.WGMMAAccumulatorRef.init(total))  # pyright: ignore[reportReturnType]

    def layer_norm(tokens: jax.Array, scale, shift) -> jax.Array:
        wide = tokens.astype(jnp.float32)
        wide -= column(jnp.sum(wide, axis=1) * (1.0 / width))
        factor = lax.rsqrt(jnp.sum(wide * wide, axis=1) * (1.0 / width) + epsilon)
        return (wide * (column(factor) * row(scale)) + row(shift)).astype(x.dtype)

    def kernel(x_ref, kernel1_ref, kernel2_ref, *rest):
        vector_refs, y_ref = rest[:4], rest[4]
        tiles, kernel1, kernel2, *vectors = rest[5:12]
        scale, shift, bias1, bias2 = vectors
        vectors_came, chunk_came, chunk_used, tile_came = rest[12:]
        group, program = lax.axis_index("group"), lax.axis_index("program")
        # A tile for each group of a program, side by side; or far apart, so that the last round's
        # tiles fall to different programs.
        first = program + programs * group if stay else program * groups + group
        stride = programs * groups
        behind = n_tokens // ROWS - (first if stay else program * groups)
        n_tiles = lax.div(behind + stride - 1, stride)

        def fetch_chunk(index: int) -> None:
            slot, at = index % stages, pl.ds(index * chunk, chunk)
            plgpu.copy_gmem_to_smem(kernel1_ref.at[:, at], kernel1.at[slot], chunk_came.at[slot])
            plgpu.copy_gmem_to_smem(kernel2_ref.at[at], kernel2.at[slot], chunk_came.at[slot])

        def compute() -> None:
            own = tiles.at[group]

            def place(i):
                return pl.ds((first + i * stride) * ROWS, ROWS)

            def fetch_tile(i, slot) -> None:
                plgpu.copy_gmem_to_smem(x_ref.at[place(i)], own.at[slot], tile_came.at[group, slot])

            def load_tile(slot) -> jax.Array:
                return plgpu.layout_cast(own[slot], plgpu.Layout.WGMMA)

            pl.when(n_tiles > 0)(lambda: fetch_tile(0, 0))

            @pl.when(group == 0)
            def _fetch_weights():
                for source, target in zip(vector_refs, vectors, strict=True):
                    plgpu.copy_gmem_to_smem(source, target, vectors_came)
                for index in range(n_chunks if stay else 0):
                    fetch_chunk(index)

            plgpu.barrier_wait(vectors_came)
            for slot in range(stages if stay else 0):
                plgpu.barrier_wait(chunk_came.at[slot])

            @pl.loop(0, n_tiles)
            def _tile(i):
                slot = lax.rem(i, 2)

                @pl.when(i + 1 < n_tiles)
                def _fetch_next():
                    # The tile before this one has to have left the other slot.
                    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                    fetch_tile(i + 1, 1 - slot)

                plgpu.barrier_wait(tile_came.at[group, slot])
                normed = layer_norm(load_tile(slot), scale, shift)
                total = row(bias2)  # twice the bias: all of the sum is halved
                for index in range(n_chunks):
                    here = index % stages
                    if not stay:
                        plgpu.barrier_wait(chunk_came.at[here])
                    inner = add_product(None, normed, kernel1, here) + row(bias1.at[index])
                    inner = twice_gelu(inner).astype(x.dtype)
                    total = add_product(total, inner, kernel2, here)
                    if not stay:
                        plgpu.barrier_arrive(chunk_used.at[here])
                own[slot] = load_tile(slot) + (0.5 * total).astype(x.dtype)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(own.at[slot], y_ref.at[place(i)])

            plgpu.wait_smem_to_gmem(0)

        def stream() -> None:
            @pl.loop(0, n_tiles)
            def _tile(i):
                for index in range(n_chunks):
                    freed = chunk_used.at[index % stages]
                    if index < stages:
                        pl.when(i > 0)(lambda freed=freed: plgpu.barrier_wait(freed))
                    else:
                        plgpu.barrier_wait(freed)
                    fetch_chunk(index)

            @pl.when(n_tiles > 0)
            def _rest():
                for slot in range(stages):
                    plgpu.barrier_wait(chunk_used.at[slot])

        if stay:
            compute()
            return

        @pl.when(group < groups)
        def _compute():
            plgpu.set_max_registers(240, action="increase")
            compute()

        @pl.when(group == groups)
        def _stream():
            plgpu.set_max_registers(24, action="decrease")
            stream()

    def matrices(*shape: int):
        swizzle = x.dtype.itemsize * math.gcd(shape[-1], chunk, width)
        transforms = (plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle))
        return plgpu.SMEM(shape, x.dtype, transforms=transforms)

    # The copy engine takes at most 256 numbers along a dimension.
    vectors = (weights.scale, weights.shift, weights.bias1.reshape(-1, chunk), 2 * weights.bias2)
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct(x.shape, x.dtype),
        grid=(programs,),
        grid_names=("program",),
        num_threads=groups if stay else groups + 1,
        thread_name="group",
        scratch_types=(
            matrices(groups, 2, ROWS, width),
            matrices(stages, width, chunk),
            matrices(stages, chunk, width),
            *(plgpu.SMEM(vector.shape, jnp.float32) for vector in vectors),
            plgpu.Barrier(num_arrivals=len(vectors)),
            plgpu.Barrier(num_arrivals=2, num_barriers=stages),
            plgpu.Barrier(num_arrivals=groups, num_barriers=stages),
            plgpu.Barrier(num_barriers=(groups, 2)),
        ),
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        interpret=plgpu.InterpretGPUParams() if interpret else None,  # pyright: ignore[reportAttributeAccessIssue]
        kernel_name="mlp",
    )(x, weights.kernel1, weights.kernel2, *(vector.astype(jnp.float32) for vector in vectors))


def twice_gelu(x: jax.Array) -> jax.Array:
    """2 gelu(x) by tanh: halving is exact, and cheaper once the products are summed."""
    return x * jnp.tanh(x * (GELU_SLOPE + GELU_CUBIC * (x * x))) + x
