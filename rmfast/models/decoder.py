"""A decoder of the Llama family that runs on packs of prompt groups.

Shape suffixes in comments: T tokens of the pack, S rows that are read, d width, H heads, D head dimension.
"""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmfast.kernels import prefix_attention, rope_tables, rotate, split_rope, swiglu
from rmfast.models.config import Activation, DecoderConfig
from rmfast.models.layers import LayerFactory, NativeLayers, Norm
from rmfast.models.low_rank import Adapters
from rmfast.models.recompute import Recompute, recomputed


class Memory(Protocol):
    """Keys and values of the tokens so far, and who sees which of them: in place of a pack's layout, for sampling."""

    def attend(
        self,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        rows: Tensor | None,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        impl: str,
    ) -> Tensor:
        """Keep keys and values, [T, Hkv, D] each, of the tokens that a layer computes, and attend.

        Args:
            layer: its number in the model.
            q: [T, H, D], or [S, H, D] of the tokens `rows` alone.
            scale, window, softcap, impl: of the layer's attention, as `prefix_attention` takes them.

        Returns:
            As q.
        """
        ...


class DecoderLayer(nn.Module):
    """Attention and MLP with their norms. The residual sum travels beside the branch that is not yet added to it."""

    def __init__(
        self, config: DecoderConfig, index: int, factory: LayerFactory, dropout: float, impl: str, attention: str
    ) -> None:
        super().__init__()
        c = self.config = config
        self.index, self.window = index, c.windows[index]
        self.dropout, self.impl = dropout, impl
        self.attention_impl = attention if self.window is None else impl
        self.rope = c.distinct_ropes.index(c.ropes[index])
        self.factory = factory
        self.heads, self.kv_heads = c.heads // factory.ranks, c.kv_heads // factory.ranks
        self.sizes = (self.heads * c.head_dim, 2 * self.kv_heads * c.head_dim)  # queries; keys and values
        before, after = c.norms != "after", c.norms != "before"
        self.attention_norm = factory.norm(c.width, c.norm_offset) if before else None
        self.qkv = factory.column(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, c.qkv_bias)
        q_width, k_width = (count * c.head_dim if c.qk_norm == "all" else c.head_dim for count in (c.heads, c.kv_heads))
        self.q_norm = factory.head_norm(q_width, c.norm_offset) if c.qk_norm else None
        self.k_norm = factory.head_norm(k_width, c.norm_offset) if c.qk_norm else None
        self.out = factory.row(c.heads * c.head_dim, c.width, c.out_bias)
        self.attention_post_norm = factory.norm(c.width, c.norm_offset) if after else None
        self.mlp_norm = factory.norm(c.width, c.norm_offset) if before else None
        self.gate_up = factory.column(c.width, 2 * c.ffn, c.mlp_bias)
        self.down = factory.row(c.ffn, c.width, c.mlp_bias)
        self.mlp_post_norm = factory.norm(c.width, c.norm_offset) if after else None

    def forward(
        self,
        branch: Tensor,
        residual: Tensor | None,
        ropes: list[Tensor],
        layout: Tensor | Memory,
        rows: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            branch: [T, d], output of the layer before, not yet added to `residual` [T, d] (None in the first layer that
                is held).
            ropes: the model's distinct tables of RoPE, [2, T, R / 2] each for R rotated dimensions.
            layout: int32 [4, T], or a memory.
            rows: int [S]; queries, output projection and MLP are computed there only. Default all T.

        Returns:
            The MLP's output and the residual sum before it, both [T, d] or [S, d].
        """
        read, residual = self.enter(self.attention_norm, branch, residual)
        branch = self.leave(self.attention_post_norm, self.attention(read, ropes[self.rope], layout, rows))
        if rows is not None:
            residual = self.factory.pick(residual, rows)
        read, residual = self.enter(self.mlp_norm, branch, residual)
        hidden = gated(self.gate_up(read), self.config.activation, self.impl)
        return self.leave(self.mlp_post_norm, self.down(hidden)), residual

    def enter(self, norm: Norm | None, branch: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """What attention or the MLP reads, and the residual sum."""
        options = {"eps": self.config.norm_eps, "impl": self.impl}
        if norm is None:
            total = branch if residual is None else branch + residual
            return total, total
        if residual is None:
            return norm(branch, **options), branch
        return norm.added(branch, residual, **options)  # type: ignore[arg-type]

    def leave(self, norm: Norm | None, branch: Tensor) -> Tensor:
        """What attention or the MLP adds to the residual sum."""
        c = self.config
        branch = branch if norm is None else norm(branch, eps=c.norm_eps, impl=self.impl)
        return self.drop(branch if c.residual_scale == 1.0 else branch * c.residual_scale)

    def attention(self, read: Tensor, tables: Tensor, layout: Tensor | Memory, rows: Tensor | None) -> Tensor:
        c, impl = self.config, self.impl
        whole = 2 * tables.shape[-1] == c.head_dim
        if rows is None and self.q_norm is None and whole:
            sizes = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": c.head_dim}
            q, k, v = split_rope(self.qkv(read), tables, **sizes, impl=impl)
            return self.out(self.attend(q, k, v, layout, None))
        if rows is None:
            q, kv = self.qkv(read).split(self.sizes, dim=-1)
        else:
            q, kv = self.qkv.split(read, rows, self.sizes)
        q = q.unflatten(-1, (self.heads, c.head_dim))  # [T or S, H, D]
        k, v = kv.unflatten(-1, (2, self.kv_heads, c.head_dim)).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.normed(self.q_norm, q), self.normed(self.k_norm, k)
        if rows is None:
            q, k = turned(q, k, tables, impl)
            return self.out(self.attend(q, k, v, layout, None))
        q, _ = turned(q, q[:, :0], tables[:, rows], impl)
        _, k = turned(k[:, :0], k, tables, impl)
        return self.out(self.attend(q, k, v, layout, rows))

    def normed(self, norm: Norm, heads: Tensor) -> Tensor:
        """Queries or keys [T, H, D], each head normalised, or all heads of a token as one row."""
        if self.config.qk_norm == "head":
            return norm(heads, eps=self.config.norm_eps, impl=self.impl)
        return norm(heads.flatten(1), eps=self.config.norm_eps, impl=self.impl).view(heads.shape)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Tensor | Memory, rows: Tensor | None) -> Tensor:
        c = self.config
        options: dict[str, Any] = {"scale": c.attention_scale, "window": self.window, "softcap": c.attention_cap}
        options["impl"] = self.attention_impl if rows is None else self.impl
        if isinstance(layout, Tensor):
            return prefix_attention(q, k, v, layout, rows=rows, **options).flatten(1)
        return layout.attend(self.index, q, k, v, rows=rows, **options).flatten(1)

    def drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training) if self.dropout else branch


def gated(gate_up: Tensor, activation: Activation, impl: str) -> Tensor:
    """act(gate) * up of [T, 2 f]; GeGLU has no kernel and is computed in plain torch."""
    if activation == "silu":
        return swiglu(gate_up, impl=impl)
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=-1)
    return (F.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)


def turned(q: Tensor, k: Tensor, tables: Tensor, impl: str) -> tuple[Tensor, Tensor]:
    """Queries and keys after RoPE of the first R dimensions of each head, for tables [2, T, R / 2]."""
    rotated = 2 * tables.shape[-1]
    if rotated == q.shape[-1]:
        return rotate(q, k, tables, impl=impl)
    first = rotate(q[..., :rotated], k[..., :rotated], tables, impl=impl)
    q_out, k_out = (torch.cat((a, x[..., rotated:]), dim=-1) for a, x in zip(first, (q, k), strict=True))
    return q_out, k_out


class Decoder(nn.Module):
    """Embedding and layers, or some of them; the final norm belongs to the heads.

    Args:
        config: sizes.
        dtype: of the activations; weights may be stored in another one.
        dropout: probability on each residual branch, in training.
        recompute: "none", "selective" (norms, RoPE and SwiGLU again in the backward) or "full" (whole layers again).
        impl: of the kernels: "auto", "triton" or "reference".
        attention: of attention over whole packs, in layers without a window: also "flash". Default `impl`.
        factory: where linear layers and embedding come from.
        held: the layers that this decoder holds, by their number in the model; they keep it in their names. Default
            all. One that holds the first layer has the embedding.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        dtype: torch.dtype = torch.float32,
        dropout: float = 0.0,
        recompute: Recompute = "none",
        impl: str = "auto",
        attention: str | None = None,
        factory: LayerFactory | None = None,
        held: range | None = None,
    ) -> None:
        super().__init__()
        self.factory = factory or NativeLayers()
        self.held = range(config.layers) if held is None else held
        self.config, self.dtype, self.dropout, self.recompute = config, dtype, dropout, recompute
        self.impl, self.attention_impl = impl, attention or impl
        # Rounded to the activations' dtype, as in transformers: 55.5 for Gemma's sqrt(3072) in bf16.
        self.embedding_scale = torch.tensor(config.embedding_scale, dtype=dtype, device="cpu").item()
        self.first_trained = 0
        self.adapters = Adapters()
        self.register_buffer("inv_freq", self.frequencies(), persistent=False)
        self.inv_freq: Tensor
        self.embed = self.factory.embedding(config.vocabulary, config.width) if 0 in self.held else None
        self.layers = nn.ModuleList()
        for i in self.held:
            self.layers.add_module(str(i), DecoderLayer(config, i, self.factory, dropout, impl, self.attention_impl))

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """What the buffer `inv_freq` holds: [ropes, R / 2], a row for each distinct RoPE of the layers."""
        return torch.tensor([rope.frequencies for rope in self.config.distinct_ropes], device=device)

    def freeze(self, top_layers: int) -> None:
        """Train only the model's top layers, as far as they are held.

        Raises:
            ValueError: there are not that many layers.
        """
        layers = self.config.layers
        if not 0 <= top_layers <= layers:
            raise ValueError(f"top_layers must be within 0 and the model's {layers} layers, got {top_layers}")
        self.first_trained = layers - top_layers
        self.requires_grad_(False)
        for i, layer in zip(self.held, self.layers, strict=True):
            layer.requires_grad_(i >= self.first_trained)

    def embedded(self, tokens: Tensor) -> Tensor:
        """The residual stream [T, d] before the first layer."""
        assert self.embed is not None
        stream: Tensor = self.embed(tokens, self.dtype)
        return stream if self.embedding_scale == 1.0 else stream * self.embedding_scale

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: Tensor | Memory,
        rows: Tensor,
        before: Tensor | None = None,
        adapter: str | None = None,
    ) -> Tensor:
        """Hidden states at some tokens of a pack, before the final norm.

        Args:
            tokens, positions: int [T]. rows: int [S], in any order, repeats allowed.
            layout: int32 [4, T], of a pack; or what holds the tokens before these.
            before: the residual stream after the layers before the first that is held; None where that is the first.
            adapter: the one that its layers compute with; None for none.

        Returns:
            [S, d] in the decoder's dtype; without the model's last layer, the residual stream after those it holds.
        """
        # Few rows: the last layer computes only them. Many (an LM loss reads every response token): all are cheaper.
        trim = self.factory.fill(rows) if 2 * len(rows) <= len(tokens) else None
        last = self.config.layers - 1
        pairs = zip(self.inv_freq, self.config.distinct_ropes, strict=True)
        ropes = [rope_tables(positions, row, scale=rope.scale, dtype=self.dtype) for row, rope in pairs]
        if self.embed is None:
            assert before is not None
            branch, residual = before, None
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.first_trained == 0):
                branch, residual = self.embedded(tokens), None
        for i, layer in zip(self.held, self.layers, strict=True):
            # A frozen trunk keeps nothing for a backward that will not come.
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.first_trained):
                run = self.adapters.bound(layer, adapter)
                run = recomputed(run, self.recompute) if torch.is_grad_enabled() else run
                branch, residual = run(branch, residual, ropes, layout, trim if i == last else None)
        assert residual is not None
        hidden = branch + residual
        if last not in self.held:
            return hidden
        hidden = self.factory.whole(hidden)
        if trim is None:
            return hidden[rows]
        return hidden if len(trim) == len(rows) else hidden[: len(rows)]
