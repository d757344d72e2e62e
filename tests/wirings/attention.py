"""Attention in its many spellings.

A head's width is contracted between two activations, so only whole heads can grow.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.wirings.registry import CLASSES, features, register, wiring

TOKENS = features(5, 6)
"""Inputs of most nets here: (B, 5 tokens, 6 features)."""


class Attender(nn.Module):
    """Embed tokens, one attention layer with a residual sum, an MLP, mean over tokens, classifier."""

    def __init__(self, attention: nn.Module, width: int = 8, norm: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width), nn.LayerNorm(width)) if norm else (nn.Identity(), nn.Identity())
        self.attention = attention
        self.mlp = nn.Sequential(nn.Linear(width, 11), nn.GELU(), nn.Linear(11, width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(dim=1))


MLP = ("mlp.0.weight", "mlp.0.bias", "mlp.2.weight")
STREAM = ("embed.weight", "embed.bias", "head.weight", "mlp.2.bias")


class FusedQkv(nn.Module):
    """The idiom of timm's vision transformers."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, width // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = self.drop(attn.softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class FusedQkvUnbind(FusedQkv):
    """Newer timm: head width from an attribute, ``unbind``, torch's fused function, ``-1`` when heads are merged."""

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0)
        return self.proj(x.transpose(1, 2).reshape(B, N, -1))


class SeparateQkv(nn.Module):
    """Hugging Face's spelling; the inner width (heads x head width) differs from the stream's."""

    def __init__(self, width: int = 8, heads: int = 3, head_dim: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(width, heads * head_dim)
        self.key = nn.Linear(width, heads * head_dim, bias=False)
        self.value = nn.Linear(width, heads * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, self.heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split_heads(self.query(x)), self.split_heads(self.key(x)), self.split_heads(self.value(x))
        attention = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / self.head_dim**0.5, dim=-1)
        x = torch.matmul(attention, v).permute(0, 2, 1, 3).contiguous()
        return self.out(x.view(*x.shape[:2], self.heads * self.head_dim))


class MultiQuery(nn.Module):
    """Several query heads share one key and value head, by torch's fused function."""

    def __init__(self, width: int = 8, heads: int = 3, head_dim: int = 4) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.query = nn.Linear(width, heads * head_dim)
        self.key_value = nn.Linear(width, 2 * head_dim)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.query(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
        k, v = self.key_value(x).unsqueeze(1).split(self.head_dim, dim=-1)
        x = F.scaled_dot_product_attention(q, k.expand_as(q), v.expand_as(q))
        return self.out(x.transpose(1, 2).flatten(2))


class EinsumAttention(nn.Module):
    """Projections held as (width, heads, head width) parameters, all contractions by einsum."""

    def __init__(self, width: int = 8, heads: int = 3, head_dim: int = 4) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(width, heads, head_dim))
        self.key = nn.Parameter(torch.zeros(width, heads, head_dim))
        self.value = nn.Parameter(torch.zeros(width, heads, head_dim))
        self.out = nn.Parameter(torch.zeros(heads, head_dim, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("bnc,chd->bhnd", x, w) for w in (self.query, self.key, self.value))
        attention = torch.einsum("bhnd,bhmd->bhnm", q, k).mul(0.5).softmax(-1)
        return torch.einsum("bhnm,bhmd,hdc->bnc", attention, v, self.out)


class HeadParameters(nn.Module):
    """Parameters per head: a temperature (heads, 1, 1) and a table of relative positions, as in Swin."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, width * 3, bias=False), nn.Linear(width, width)
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.table = nn.Parameter(torch.zeros(9, heads))
        index = torch.arange(5)[:, None] - torch.arange(5)[None] + 4
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        attention = q @ k.transpose(-2, -1) * self.temperature + bias.unsqueeze(0)
        return self.proj((attention.softmax(-1) @ v).transpose(1, 2).reshape(b, n, c))


class LinearAttention(nn.Module):
    """Keys over tokens make a (head width x head width) state; the queries' softmax spans the head."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, width * 3), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        state = k.softmax(dim=-2).transpose(-2, -1) @ v
        return self.out((q.softmax(dim=-1) @ state).transpose(1, 2).reshape(b, n, -1))


class ChannelAttention(nn.Module):
    """XCiT: attention between the channels of a head, its queries and keys scaled to length 1 over the tokens."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, width * 3), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 4, 1).unbind(0)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return self.proj((attention.softmax(-1) @ v).permute(0, 3, 1, 2).reshape(b, n, c))


QKV = ("attention.qkv.weight", "attention.proj.weight")
register("attention_fused_qkv", lambda: Attender(FusedQkv()), TOKENS, grows=(*STREAM, *MLP, *QKV))
register(
    "attention_fused_qkv_prenorm",
    lambda: Attender(FusedQkv(), norm=True),
    TOKENS,
    grows=(*STREAM, *MLP, *QKV),
    mixes=True,
)
register("attention_fused_qkv_unbind", lambda: Attender(FusedQkvUnbind()), TOKENS, grows=(*STREAM, *MLP, *QKV))
register(
    "attention_separate_projections",
    lambda: Attender(SeparateQkv()),
    TOKENS,
    grows=(
        *STREAM,
        *MLP,
        "attention.query.weight",
        "attention.key.weight",
        "attention.value.weight",
        "attention.out.weight",
    ),
)
register("attention_multi_query", lambda: Attender(MultiQuery()), TOKENS, expect="partly", grows=MLP)
register("attention_einsum", lambda: Attender(EinsumAttention()), TOKENS, expect="partly", grows=MLP)
register("attention_head_parameters", lambda: Attender(HeadParameters()), TOKENS, expect="partly", grows=MLP)
register("attention_linear", lambda: Attender(LinearAttention()), TOKENS, expect="partly", grows=MLP)
register("attention_between_channels", lambda: Attender(ChannelAttention()), TOKENS, expect="partly", grows=MLP)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention with one argument, as needed inside a chain."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


register("multihead_attention_self", lambda: Attender(SelfAttention()), TOKENS, expect="partly", grows=MLP)


def _two_sequences(batch: int) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(batch)
    return (torch.randn(batch, 5, 6, generator=generator), torch.randn(batch, 7, 4, generator=generator)), {}


@wiring("multihead_attention_cross", _two_sequences, expect="partly", grows=("mlp.0.weight", "mlp.2.weight"))
class CrossAttention(nn.Module):
    """Keys and values of another width than the queries: MultiheadAttention then keeps three separate weights."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.memory = nn.Linear(6, 8), nn.Linear(4, 10)
        self.attn = nn.MultiheadAttention(8, 2, kdim=10, vdim=10, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, CLASSES))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        memory = self.memory(memory).relu()
        x, _ = self.attn(self.query(x), memory, memory)
        return self.mlp(x.mean(1))


@wiring(
    "transformer_encoder_layer",
    TOKENS,
    expect="partly",
    mixes=True,
    grows=("layer.linear1.weight", "layer.linear2.weight"),
)
class EncoderLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(x))[:, 0])


@wiring(
    "transformer_encoder_stack",
    TOKENS,
    expect="partly",
    mixes=True,
    grows=("encoder.layers.0.linear1.weight",),
    stochastic=True,
)
class EncoderStack(nn.Module):
    """Two layers, norm first, with dropout, under nn.TransformerEncoder."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6)
        layer = nn.TransformerEncoderLayer(6, 3, 10, 0.1, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(6), enable_nested_tensor=False)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), FusedQkv(width, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


@wiring(
    "vision_transformer",
    features(3, 8, 6),
    mixes=True,
    grows=("patch.weight", "blocks.0.attn.qkv.weight", "blocks.1.fc1.weight", "norm.weight", "head.weight"),
)
class VisionTransformer(nn.Module):
    """Patches by a strided conv, a class token in front, learned positions, the class token read at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, stride=2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 13, 8))
        self.blocks = nn.Sequential(TransformerBlock(8, 2, 12), TransformerBlock(8, 4, 11))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


@wiring("swin_window_attention", features(4, 4, 3), grows=("embed.weight", "attention.qkv.weight", "fc.weight"))
class SwinWindows(nn.Module):
    """Channels-last images cut into 2 x 2 windows, attention inside each, windows put together again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.fc = nn.Linear(3, 8), FusedQkv(8, 2), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.roll(self.embed(x), (-1, -1), (1, 2))
        b, h, w, c = x.shape
        x = x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        x = self.attention(x)
        x = x.view(b, h // 2, w // 2, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, -1)
        return self.fc(x.relu().mean((1, 2)))


@wiring(
    "non_local_block",
    features(3, 4, 5),
    grows=("stem.weight", "out.weight", "head.weight"),
    pinned=("theta.bias",),
    expect="partly",
)
class NonLocalBlock(nn.Module):
    """One-headed attention over pixels; theta and phi are contracted with each other, g is free."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 1)
        self.theta, self.phi = nn.Conv2d(10, 4, 1), nn.Conv2d(10, 4, 1, bias=False)
        self.g, self.out = nn.Conv2d(10, 7, 1), nn.Conv2d(7, 10, 1)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, _, h, w = x.shape
        attention = (self.theta(x).flatten(2).transpose(1, 2) @ self.phi(x).flatten(2)).softmax(-1)
        y = (self.g(x).flatten(2) @ attention.transpose(1, 2)).view(b, -1, h, w)
        return self.head((x + self.out(y)).mean((2, 3)))
