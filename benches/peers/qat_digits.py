"""What PyTorch's quantization-aware training makes of the digits CNN: accuracy by bits, and the time of an epoch.

Run from the repository root: python benches/peers/qat_digits.py [--bits 8 4 3 2] [--epochs 30] [--seeds 5] [--scale-rate 1] [--time]

The recipe is that of examples/qat_finetune.rs: from the trained float network, batches of 30, images moved by up to a pixel, Adam from
the same rate down a cosine, weights and activations at the same width, first and last layer included.

  fx         FX graph mode: FakeQuantize with moving averages of ranges, batch norms folded as it folds them, statistics and observers
             frozen after two thirds
  learnable  the same with _LearnableFakeQuantize for weights and activations: observers for an epoch, then scales (and zero points) are
             learned, with its own scaling of gradients

Accuracy is of the fake-quantized network in evaluation mode, on the 647 test images. --time prints the time of an epoch of both on one
thread, the fastest of five.
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import safetensors.numpy
import torch
import torch.nn.functional as F
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver, QConfig, QConfigMapping
from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize
from torch.ao.quantization.fake_quantize import disable_observer
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.nn.intrinsic.qat import freeze_bn_stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))
from refio import DATA
from static_digits import torch_network
from train_digits import shifted, to_input

BATCH = 30


def digits(part):
    stored = safetensors.numpy.load_file(DATA / "digits.safetensors")
    return to_input(stored[f"{part}.images"]), torch.from_numpy(stored[f"{part}.labels"].astype("int64"))


def qconfig(mode, bits):
    """Activations in 0 to 2^b - 1, weights signed and symmetric for each output channel."""
    top, half = 2**bits - 1, 2 ** (bits - 1)
    activation = dict(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=top, dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    weight = dict(
        observer=MovingAveragePerChannelMinMaxObserver,
        quant_min=-half,
        quant_max=half - 1,
        dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
    )
    if mode == "fx":
        return QConfig(FakeQuantize.with_args(**activation), FakeQuantize.with_args(**weight))
    return QConfig(_LearnableFakeQuantize.with_args(**activation, use_grad_scaling=True), FakeQuantize.with_args(**weight))


def learn_weight_scales(model, bits):
    """Learnable quantizers in the place of those of weights: they must know the number of channels."""
    for module in model.modules():
        if hasattr(module, "weight_fake_quant"):
            arguments = qconfig("fx", bits).weight.p.keywords
            module.weight_fake_quant = _LearnableFakeQuantize(channel_len=module.weight.shape[0], use_grad_scaling=True, **arguments)


def learnables(model):
    return [module for module in model.modules() if isinstance(module, _LearnableFakeQuantize)]


def parameter_groups(model, rate, factor):
    """Scales and zero points that are learned have a rate of their own."""
    learned = {id(value) for module in learnables(model) for value in module.parameters()}
    groups = {True: [], False: []}
    for value in model.parameters():
        groups[id(value) in learned].append(value)
    return [{"params": groups[False], "lr": rate}, {"params": groups[True], "lr": factor * rate}]


def prepared(mode, bits):
    model = torch_network("cnn").train()
    example = (torch.zeros(1, 1, 8, 8),)
    model = prepare_qat_fx(model, QConfigMapping().set_global(qconfig(mode, bits)), example)
    if mode == "learnable":
        learn_weight_scales(model, bits)
    for module in learnables(model):
        module.enable_static_estimate()
    return model


def epoch(model, optimizer, schedule, images, labels, generator):
    for rows in torch.randperm(len(images), generator=generator).split(BATCH):
        loss = F.cross_entropy(model(shifted(images[rows], generator)), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def tuned(mode, bits, seed, epochs, rate, factor, train, test):
    """Percent of the test images that are right."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = prepared(mode, bits)
    optimizer = torch.optim.Adam(parameter_groups(model, rate, factor))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train[0]) // BATCH)
    for number in range(epochs):
        if number == max(2 * epochs // 3, 1):
            model.apply(freeze_bn_stats)
            if mode == "fx":
                model.apply(disable_observer)
        if number == 1:
            for module in learnables(model):
                module.enable_param_learning()
        epoch(model, optimizer, schedule, *train, generator)
    model.eval()
    with torch.no_grad():
        return 100 * (model(test[0]).argmax(1) == test[1]).float().mean().item()


def epoch_time(mode, train):
    generator = torch.Generator().manual_seed(0)
    model = prepared(mode, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        epoch(model, optimizer, schedule, *train, generator)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=int, nargs="*", default=[8, 4, 3, 2])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--scale-rate", type=float, default=1.0, help="of learned scales, as a factor")
    parser.add_argument("--modes", nargs="*", default=["fx", "learnable"])
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    train, test = digits("train"), digits("test")
    if arguments.time:
        for mode in arguments.modes:
            print(f"{mode}: {1e3 * epoch_time(mode, train):.0f} ms an epoch, one thread")
        return
    for bits in arguments.bits:
        for mode in arguments.modes:
            seeds = [tuned(mode, bits, seed, arguments.epochs, arguments.rate, arguments.scale_rate, train, test) for seed in range(arguments.seeds)]
            each = ", ".join(f"{accuracy:.2f}" for accuracy in seeds)
            print(f"{bits} bits, {mode}: mean {sum(seeds) / len(seeds):.2f} ({each})", flush=True)


if __name__ == "__main__":
    main()
