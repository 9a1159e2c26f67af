"""A network, a training loop and a metric of one's own, for `taylorfo_custom_loop.yaml` beside this file.

Nothing here knows of nnicompress. The loop calls the optimizer, the training step and the scheduler that it is given;
functions with a parameter `data` get the recipe's data.
"""

import torch
from torch import nn


class TwoPaths(nn.Module):
    """Two convolutional paths of different kernels over a grey image, joined channel by channel and by their sum."""

    def __init__(self, width: int = 24, num_classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.fine = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.coarse = nn.Sequential(nn.Conv2d(width, width, 5, padding=2), nn.BatchNorm2d(width), nn.ReLU())
        self.join = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Linear(width, num_classes)

    def forward(self, images):
        """Images `[N, 1, H, W]` to logits `[N, num_classes]`."""
        x = self.stem(images)
        joined = self.join(torch.cat([self.fine(x), self.coarse(x)], dim=1)) + x
        return self.head(joined.mean(dim=(2, 3)))


def training_step(batch, model):
    """Cross-entropy of a batch with smoothed labels."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels, label_smoothing=0.05)


def train(model, optimizer, training_step, lr_scheduler, max_steps, max_epochs, data):
    """Train for `max_steps` steps or `max_epochs` epochs; `data` is the recipe's."""
    loader = data.train_loader(seed=0)
    model.train()
    step = epoch = 0
    while max_epochs is None or epoch < max_epochs:
        for batch in loader:
            optimizer.zero_grad()
            training_step(batch, model).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            step += 1
            if step == max_steps:
                return
        epoch += 1


train.steps_per_epoch = lambda data: len(data.train_loader(seed=0))  # a schedule over the whole training needs it


def balanced_accuracy(model, split, data):
    """The mean over the classes of the part of their images that is recognised, so that rare classes count alike."""
    loader = data.validation_loader() if split == "validation" else data.test_loader()
    hits, images = torch.zeros(data.num_classes), torch.zeros(data.num_classes)
    model.eval()
    with torch.no_grad():
        for batch, labels in loader:
            right = model(batch).argmax(dim=1) == labels
            hits += torch.bincount(labels[right], minlength=data.num_classes)
            images += torch.bincount(labels, minlength=data.num_classes)
    return {"default": (hits / images).mean().item(), "worst class": (hits / images).min().item()}
