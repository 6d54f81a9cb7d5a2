"""RoBERTa with a projection into the joint space of sound and text: the text tower of CLAP.

After Liu et al. 2019 (arXiv 1907.11692) and Wu et al. 2023 (arXiv 2211.06687); the references are
`transformers.ClapTextModelWithProjection` and LAION-CLAP's `get_text_embedding`. Shapes: B texts,
T tokens, D width, P width of the joint space.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

TRAINED_TOKENS = 77  # of LAION's texts in training: longer ones are cut there


@dataclass(frozen=True)
class RobertaConfig:
    """Architecture of one text tower; the defaults are roberta-base in LAION's CLAP.

    Attributes:
        width: numbers per token.
        depth: layers.
        heads: of attention.
        hidden: width inside a layer's MLP.
        vocabulary: different tokens.
        positions: rows of the table of positions, of which the first `pad_id + 1` serve no token.
        pad_id: the token that fills shorter texts up.
        norm_eps: of every LayerNorm.
        max_tokens: longer texts are cut; at most `positions - pad_id - 1`.
        projection_hidden: width inside the projection.
        projection_dim: P.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 50265
    positions: int = 514
    pad_id: int = 1
    norm_eps: float = 1e-5
    max_tokens: int = TRAINED_TOKENS
    projection_hidden: int = 512
    projection_dim: int = 512


def _norm(config: RobertaConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(config.width, epsilon=config.norm_eps, use_fast_variance=False, rngs=rngs)


class SelfAttention(nnx.Module):
    """Multi-head attention over the tokens of one text."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.heads = config.heads
        width = config.width
        self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
        """[B, T, D] -> same; nothing attends to places where `is_token` [B, T] is false."""
        b, t, width = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (width // self.heads) ** -0.5
        scores = jnp.where(is_token[:, None, None, :], scores, jnp.finfo(scores.dtype).min)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
        return self.out(mixed.reshape(b, t, width))


class Layer(nnx.Module):
    """Attention and MLP, each added to its input and normalized afterwards."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.attention = SelfAttention(config, rngs=rngs)
        self.attention_norm = _norm(config, rngs)
        self.fc1 = nnx.Linear(config.width, config.hidden, rngs=rngs)
        self.fc2 = nnx.Linear(config.hidden, config.width, rngs=rngs)
        self.norm = _norm(config, rngs)

    def __call__(self, x: jax.Array, is_token: jax.Array) -> jax.Array:
        """[B, T, D] -> same."""
        x = self.attention_norm(x + self.attention(x, is_token))
        return self.norm(x + self.fc2(jax.nn.gelu(self.fc1(x), approximate=False)))


class Projection(nnx.Module):
    """Two layers from a text to the joint space."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(config.width, config.projection_hidden, rngs=rngs)
        self.fc2 = nnx.Linear(config.projection_hidden, config.projection_dim, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, D] -> [B, P] of unit length."""
        x = self.fc2(jax.nn.relu(self.fc1(x)))
        return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


class Roberta(nnx.Module):
    """Tokens in, one unit vector per text out."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.words = nnx.Embed(config.vocabulary, config.width, rngs=rngs)
        self.positions = nnx.Embed(config.positions, config.width, rngs=rngs)
        self.token_types = nnx.Embed(1, config.width, rngs=rngs)
        self.norm = _norm(config, rngs)
        self.layers = nnx.List(Layer(config, rngs=rngs) for _ in range(config.depth))
        self.pooler = nnx.Linear(config.width, config.width, rngs=rngs)
        self.projection = Projection(config, rngs=rngs)

    def pooled(self, ids: jax.Array) -> jax.Array:
        """Tokens int [B, T], `pad_id` behind the end -> [B, D], from the first token of each."""
        is_token = ids != self.config.pad_id
        # Positions count the tokens from pad_id + 1 on; padding stays at pad_id.
        place = jnp.cumsum(is_token, axis=1) * is_token + self.config.pad_id
        x = self.words(ids) + self.token_types(jnp.zeros_like(ids)) + self.positions(place)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, is_token)
        return jnp.tanh(self.pooler(x[:, 0]))

    def __call__(self, ids: jax.Array) -> jax.Array:
        """Tokens int [B, T], `pad_id` behind the end -> float32 [B, P] of unit length."""
        return self.projection(self.pooled(ids))


@lru_cache(maxsize=4)
def abstract_roberta(config: RobertaConfig) -> tuple[Any, Any]:
    """The model's graph and shapes, (graphdef, abstract state), without allocating weights."""
    return nnx.split(nnx.eval_shape(lambda: Roberta(config, rngs=nnx.Rngs(0))))
