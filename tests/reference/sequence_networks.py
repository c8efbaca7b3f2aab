"""The two character networks of `train_accuracy_networks.py`, their text, and how they are trained.

The text is source code of Python's own standard library: nothing is downloaded. Another release of Python has another
text, so the script prints its SHA-256 beside the losses.
"""

import hashlib
import io
import math
import warnings
import sysconfig
import time
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F
from torch import nn

LENGTH = 128
WIDTH = 256
SEED = 1
# Printable ASCII and the newline; every other character is read as the question mark.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
TRAIN_CHARACTERS = 1_000_000
# Of the files in order, every so many-th is kept from training.
HELD_OUT = 8
SEQUENCES = 128


class Block(nn.Module):
    """Pre-norm: causal attention, then a perceptron of four times the width, each added to its input."""

    def __init__(self, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x, mask):
        size = WIDTH // self.heads
        n = self.norm1(x)
        query, key, value = (
            layer(n).reshape(-1, LENGTH, self.heads, size).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) * (1 / math.sqrt(size)) + mask
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(-1, LENGTH, WIDTH)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens [n, 128] to the logits of every next token."""

    def __init__(self, layers=4, heads=4):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), WIDTH)
        self.position = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block(heads) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, len(ALPHABET))
        # As models come out of exporters: a large negative number, not an infinity.
        self.register_buffer("mask", torch.full((LENGTH, LENGTH), -1e4).triu(1), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                depth = math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(parameter, 0, 0.02 / depth)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


class Lstm(nn.Module):
    """Two layers of 256 over embeddings of 64; state zero at the start of each sequence."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(ALPHABET), 64)
        self.lstm = nn.LSTM(64, WIDTH, num_layers=2)
        self.head = nn.Linear(WIDTH, len(ALPHABET))

    def forward(self, tokens):
        # Time first, as the operator of ONNX has it.
        states, _ = self.lstm(self.embedding(tokens.transpose(0, 1)))
        return self.head(states.transpose(0, 1))


# Module, steps, sequences in a step, peak learning rate.
NETWORKS = {"transformer": (Transformer, 1500, 16, 1e-3), "lstm": (Lstm, 1000, 32, 4e-3)}


def texts():
    """(for training, held out): tokens of the standard library's modules in the order of their names."""
    train, held_out, files = [], [], sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    size = 0
    for i, path in enumerate(files):
        text = path.read_text(encoding="utf-8")
        if i % HELD_OUT == HELD_OUT - 1:
            held_out.append(text)
        elif size < TRAIN_CHARACTERS:
            train.append(text[: TRAIN_CHARACTERS - size])
            size += len(train[-1])
        else:
            break
    codes = {character: i for i, character in enumerate(ALPHABET)}
    other = codes["?"]
    return [torch.tensor([codes.get(character, other) for character in "".join(part)]) for part in (train, held_out)]


def digest(tokens):
    return hashlib.sha256(bytes(tokens.tolist())).hexdigest()


def pieces(tokens, count):
    """`count` sequences at equal distances, and the token that follows each of their positions."""
    starts = [i * (len(tokens) - LENGTH - 1) // (count - 1) for i in range(count)]
    return tuple(torch.stack([tokens[i + shift : i + shift + LENGTH] for i in starts]) for shift in (0, 1))


def loss(model, tokens, labels):
    """Mean cross entropy in nats."""
    with torch.no_grad():
        return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten()).item()


def train(name):
    """The trained network in evaluation mode."""
    make, steps, batch, rate = NETWORKS[name]
    text, held_out = texts()
    print(f"{len(text)} characters, SHA-256 {digest(text)}; held out {len(held_out)}, {digest(held_out)}")
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = make()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], rate, betas=(0.9, 0.98)
    )
    warmup = 100
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda i: (i + 1) / warmup if i < warmup else 0.02 + 0.98 * (1 + math.cos(math.pi * (i - warmup) / (steps - warmup))) / 2,
    )
    check = pieces(held_out, 32)
    window = torch.arange(LENGTH)
    start = time.time()
    for step in range(steps):
        rows = torch.randint(len(text) - LENGTH, (batch, 1), generator=generator) + window
        found = F.cross_entropy(model(text[rows]).flatten(0, 1), text[rows + 1].flatten())
        optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            seconds = time.time() - start
            print(f"step {step + 1:4}: loss {found.item():.4f}, held out {loss(model, *check):.4f}, {seconds:.0f} s", flush=True)
    return model.eval()


def to_onnx(model):
    """What PyTorch's exporter writes, as bytes: linear layers are MatMul and Add, GELU is written out by Erf."""
    made = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(2, LENGTH, dtype=torch.int64),),
            made,
            input_names=["tokens"],
            output_names=["logits"],
            dynamic_axes={"tokens": {0: "n"}, "logits": {0: "n"}},
            opset_version=17,
            dynamo=False,
        )
    exported = onnx.load_from_string(made.getvalue())
    onnx.checker.check_model(exported, full_check=True)
    return exported.SerializeToString(deterministic=True)
