"""A decoder of the Llama family that runs on packs of prompt groups.

Shape suffixes in comments: T tokens of the pack, S rows that are read, d width, H heads, D head dimension.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rmfast.kernels import prefix_attention, rope_tables, rotate, split_rope, swiglu
from rmfast.models.config import DecoderConfig
from rmfast.models.layers import LayerFactory, NativeLayers
from rmfast.models.low_rank import Adapters
from rmfast.models.recompute import Recompute, recomputed


class Memory(Protocol):
    """Keys and values of the tokens so far, and who sees which of them: in place of a pack's layout, for sampling."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor | None, window: int | None, impl: str
    ) -> Tensor:
        """Keep keys and values, [T, Hkv, D] each, of the tokens that a layer computes, and attend.

        Args:
            layer: its number in the model.
            q: [T, H, D], or [S, H, D] of the tokens `rows` alone.
            window: of the layer. impl: of the attention, as `prefix_attention` takes it.

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
        self.factory = factory
        self.heads, self.kv_heads = c.heads // factory.ranks, c.kv_heads // factory.ranks
        self.sizes = (self.heads * c.head_dim, 2 * self.kv_heads * c.head_dim)  # queries; keys and values
        self.attention_norm = factory.norm(c.width)
        self.qkv = factory.column(c.width, (c.heads + 2 * c.kv_heads) * c.head_dim, c.qkv_bias)
        self.q_norm = factory.head_norm(c.head_dim) if c.qk_norm else None
        self.k_norm = factory.head_norm(c.head_dim) if c.qk_norm else None
        self.out = factory.row(c.heads * c.head_dim, c.width, c.out_bias)
        self.mlp_norm = factory.norm(c.width)
        self.gate_up = factory.column(c.width, 2 * c.ffn, c.mlp_bias)
        self.down = factory.row(c.ffn, c.width, c.mlp_bias)

    def forward(
        self, branch: Tensor, residual: Tensor | None, tables: Tensor, layout: Tensor | Memory, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """One layer.

        Args:
            branch: [T, d], output of the layer before, not yet added to `residual` [T, d] (None in the first layer that
                is held).
            tables: [2, T, D / 2], of RoPE. layout: int32 [4, T], or a memory.
            rows: int [S]; queries, output projection and MLP are computed there only. Default all T.

        Returns:
            The MLP's output and the residual sum before it, both [T, d] or [S, d].
        """
        eps, impl = self.config.norm_eps, self.impl
        if residual is None:
            normed, residual = self.attention_norm(branch, eps=eps, impl=impl), branch
        else:
            normed, residual = self.attention_norm.added(branch, residual, eps=eps, impl=impl)
        attended = self.drop(self.attention(normed, tables, layout, rows))
        if rows is not None:
            residual = self.factory.pick(residual, rows)
        normed, residual = self.mlp_norm.added(attended, residual, eps=eps, impl=impl)
        return self.drop(self.down(swiglu(self.gate_up(normed), impl=impl))), residual

    def attention(self, normed: Tensor, tables: Tensor, layout: Tensor | Memory, rows: Tensor | None) -> Tensor:
        c, impl = self.config, self.impl
        if rows is None and self.q_norm is None:
            sizes = {"heads": self.heads, "kv_heads": self.kv_heads, "head_dim": c.head_dim}
            q, k, v = split_rope(self.qkv(normed), tables, **sizes, impl=impl)
            return self.out(self.attend(q, k, v, layout, None))
        if rows is None:
            q, kv = self.qkv(normed).split(self.sizes, dim=-1)
        else:
            q, kv = self.qkv.split(normed, rows, self.sizes)
        q = q.unflatten(-1, (self.heads, c.head_dim))  # [T or S, H, D]
        k, v = kv.unflatten(-1, (2, self.kv_heads, c.head_dim)).unbind(1)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q, eps=c.norm_eps, impl=impl)
            k = self.k_norm(k, eps=c.norm_eps, impl=impl)
        if rows is None:
            q, k = rotate(q, k, tables, impl=impl)
            return self.out(self.attend(q, k, v, layout, None))
        q, _ = rotate(q, q[:, :0], tables[:, rows], impl=impl)
        _, k = rotate(k[:, :0], k, tables, impl=impl)
        return self.out(self.attend(q, k, v, layout, rows))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, layout: Tensor | Memory, rows: Tensor | None) -> Tensor:
        impl = self.attention_impl if rows is None else self.impl
        if isinstance(layout, Tensor):
            return prefix_attention(q, k, v, layout, rows=rows, window=self.window, impl=impl).flatten(1)
        return layout.attend(self.index, q, k, v, rows=rows, window=self.window, impl=impl).flatten(1)

    def drop(self, branch: Tensor) -> Tensor:
        return F.dropout(branch, self.dropout, self.training) if self.dropout else branch


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
        self.first_trained = 0
        self.adapters = Adapters()
        self.register_buffer("inv_freq", torch.tensor(config.rope), persistent=False)
        self.inv_freq: Tensor
        self.embed = self.factory.embedding(config.vocabulary, config.width) if 0 in self.held else None
        self.layers = nn.ModuleList()
        for i in self.held:
            self.layers.add_module(str(i), DecoderLayer(config, i, self.factory, dropout, impl, self.attention_impl))

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
        tables = rope_tables(positions, self.inv_freq, scale=self.config.rope_scale, dtype=self.dtype)
        if self.embed is None:
            assert before is not None
            branch, residual = before, None
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.first_trained == 0):
                branch, residual = self.embed(tokens, self.dtype), None
        for i, layer in zip(self.held, self.layers, strict=True):
            # A frozen trunk keeps nothing for a backward that will not come.
            with torch.set_grad_enabled(torch.is_grad_enabled() and i >= self.first_trained):
                run = self.adapters.bound(layer, adapter)
                run = recomputed(run, self.recompute) if torch.is_grad_enabled() else run
                branch, residual = run(branch, residual, tables, layout, trim if i == last else None)
        assert residual is not None
        hidden = branch + residual
        if last not in self.held:
            return hidden
        hidden = self.factory.whole(hidden)
        if trim is None:
            return hidden[rows]
        return hidden if len(trim) == len(rows) else hidden[: len(rows)]
