"""Train the small residual network of the digits example and record its float outputs.

Run from the repository root: python tests/reference/train_digits.py

Writes
  examples/data/digits.safetensors       the images and labels, split into train / validate / test
  examples/data/digits_cnn.safetensors   the trained weights, under PyTorch's state_dict names
  tests/fixtures/digits_cnn.safetensors  the output of every step for 8 test images, all test logits

The recipe below is the first that was tried, kept because its validation accuracy sufficed; the
weights are those after the last epoch. The test images are evaluated once, after training, to
report the accuracy; nothing is chosen by it.
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import refio

SPLIT_SEED = 20240229
TRAIN_SEED = 1
EPOCHS = 30
BATCH = 30
STEP_IMAGES = 8

SPLIT = (
    f"Per class 0..9, the images of that class in the order of scikit-learn's load_digits() are "
    f"permuted by numpy.random.RandomState({SPLIT_SEED}), one generator for all classes in "
    f"ascending order; the first 10 calibrate, the next 80 complete the training set, the next 25 "
    f"validate and the rest test. Each of the four parts is then permuted by the same generator, "
    f"in that order. train = calibration rows 0..100 (10 per class) followed by 800 others (80 per "
    f"class); validate = 250 (25 per class); test = 647."
)


def split(images, labels):
    """The documented stratified split: {part: (images u8 [n,1,8,8], labels u8 [n])}."""
    rng = np.random.RandomState(SPLIT_SEED)
    parts = [[], [], [], []]
    for digit in range(10):
        order = rng.permutation(np.flatnonzero(labels == digit))
        for part, rows in zip(parts, np.split(order, [10, 90, 115])):
            part.append(rows)
    calibrate, rest, validate, test = [rng.permutation(np.concatenate(part)) for part in parts]
    named = {"train": np.concatenate([calibrate, rest]), "validate": validate, "test": test}
    everything = np.concatenate(list(named.values()))
    assert np.array_equal(np.sort(everything), np.arange(len(labels)))
    return {name: (images[rows][:, None], labels[rows]) for name, rows in named.items()}


class DigitsCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.conv4 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(32)
        self.conv5 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False)
        self.bn5 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, 10)

    def forward(self, x, steps=None):
        """The logits; `steps`, if given, receives the output of every named step."""

        def step(name, value):
            if steps is not None:
                steps[name] = value
            return value

        x = step("conv1", self.conv1(x))
        x = step("bn1", self.bn1(x))
        x = step("relu1", F.relu(x))
        x = step("conv2", self.conv2(x))
        x = step("bn2", self.bn2(x))
        x = step("relu2", F.relu(x))
        shortcut = x = step("pool1", F.max_pool2d(x, 2))
        x = step("conv3", self.conv3(x))
        x = step("bn3", self.bn3(x))
        x = step("relu3", F.relu(x))
        x = step("conv4", self.conv4(x))
        x = step("bn4", self.bn4(x))
        x = step("add", x + shortcut)
        x = step("relu4", F.relu(x))
        x = step("conv5", self.conv5(x))
        x = step("bn5", self.bn5(x))
        x = step("relu5", F.relu(x))
        x = step("gap", F.adaptive_avg_pool2d(x, 1))
        x = step("flatten", torch.flatten(x, 1))
        x = step("fc", self.fc(x))
        step("softmax", F.softmax(x, dim=1))
        return x


def to_input(images):
    """Raw values 0..16 to the network's f32 input in 0..1 (exact: 16 is a power of two)."""
    return torch.from_numpy(images.astype(np.float32) / np.float32(16))


def shifted(images, generator):
    """Each image moved by -1, 0 or 1 pixel in each direction; the border is filled with zero."""
    padded = F.pad(images, (1, 1, 1, 1))
    offsets = torch.randint(0, 3, (len(images), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + 8, x : x + 8] for p, (y, x) in zip(padded, offsets)])


def evaluate(model, images, labels):
    """(logits, number of right answers, mean cross entropy) in evaluation mode."""
    model.eval()
    with torch.no_grad():
        logits = model(images)
    loss = F.cross_entropy(logits, labels).item()
    return logits, int((logits.argmax(1) == labels).sum()), loss


def train(make, images, labels, check):
    """What `make()` builds, trained. `check` = (images, labels) of the validation set, printed, not learned."""
    torch.manual_seed(TRAIN_SEED)
    generator = torch.Generator().manual_seed(TRAIN_SEED)
    model = make()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.SGD(
        [{"params": matrices, "weight_decay": 1e-3}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(images) // BATCH)
    for epoch in range(EPOCHS):
        model.train()
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = F.cross_entropy(model(shifted(images[rows], generator)), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        _, right, loss = evaluate(model, *check)
        print(f"epoch {epoch + 1:2}: validation {right}/{len(check[1])}, loss {loss:.4f}")
    return model


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    digits = load_digits()
    raw = digits.images.astype(np.uint8)
    assert np.array_equal(raw, digits.images) and raw.max() == 16
    parts = split(raw, digits.target.astype(np.uint8))
    assert [len(labels) for _, labels in parts.values()] == [900, 250, 647]
    assert np.array_equal(np.bincount(parts["train"][1][:100]), [10] * 10)
    tensors = {}
    for name, (images, labels) in parts.items():
        tensors[f"{name}.images"] = images
        tensors[f"{name}.labels"] = labels
    refio.save(
        refio.DATA / "digits.safetensors",
        tensors,
        {
            "source": (
                "E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
                "Learning Repository, 1998, doi:10.24432/C50P49; the 1797 images distributed with "
                "scikit-learn as load_digits()"
            ),
            "license": "CC BY 4.0",
            "changes": "values stored as u8, images reordered into the split below",
            "values": "images are raw intensities 0..16; the network's input is value / 16",
            "split": SPLIT,
        },
    )

    ready = {
        name: (to_input(images), torch.from_numpy(labels.astype(np.int64)))
        for name, (images, labels) in parts.items()
    }
    model = train(DigitsCnn, *ready["train"], check=ready["validate"])
    _, validated, _ = evaluate(model, *ready["validate"])
    refio.save(
        refio.DATA / "digits_cnn.safetensors",
        {name: value.numpy() for name, value in model.state_dict().items()},
        {
            "format": "pt",
            "input": "f32 [n, 1, 8, 8], intensity / 16",
            "trained_on": "rows of digits.safetensors: train (900)",
            "validation": f"{validated}/250",
        },
    )

    # Reported only.
    logits, tested, _ = evaluate(model, *ready["test"])
    print(f"validation {validated}/250 = {validated / 2.5:.2f} %")
    print(f"test       {tested}/647 = {100 * tested / 647:.2f} %")

    images = ready["test"][0][:STEP_IMAGES]
    steps = {}
    with torch.no_grad():
        model(images, steps)
    fixture = {name: value.numpy() for name, value in steps.items()}
    fixture["images"] = images.numpy()
    fixture["logits_all"] = logits.numpy()
    # How far single precision is from the true values: the tolerance a comparison can ask for.
    exact = {}
    with torch.no_grad():
        model.double()(images.double(), exact)
    worst = max((exact[name] - steps[name]).abs().max().item() for name in steps)
    print(f"largest difference of any step from float64: {worst:.2e}")
    refio.save(
        refio.FIXTURES / "digits_cnn.safetensors",
        fixture,
        {
            "steps": f"evaluation mode, images = the first {STEP_IMAGES} test images / 16",
            "logits_all": "fc output for all 647 test images in the order of test.images",
            "test": f"{tested}/647",
            "validation": f"{validated}/250",
        },
    )


if __name__ == "__main__":
    main()
