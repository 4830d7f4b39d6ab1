"""Aurora in a LightningModule: one optimizer from configure_optimizers, saved and resumed.

python examples/lightning_module.py     # CPU, seconds; needs lightning
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polarlight


class Model(lightning.LightningModule):
    def __init__(self, steps):
        super().__init__()
        torch.manual_seed(0)
        hidden = [nn.Linear(32, 128, bias=False), nn.ReLU(), nn.Linear(128, 32, bias=False)]
        self.net = nn.Sequential(nn.Embedding(64, 32), *hidden, nn.Linear(32, 64, bias=False))
        self.steps = steps
        self.losses = []

    def training_step(self, batch, index):
        tokens, targets = batch
        loss = nn.functional.cross_entropy(self.net(tokens).flatten(0, 1), targets.flatten())
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = polarlight.Aurora(self.net, lr=0.02, aux_lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def data():
    tokens = torch.randint(64, (512, 8), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(tokens, (5 * tokens + 3) % 64), batch_size=32)


def main(folder=None, epochs=2, resume=None):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", enable_checkpointing=False, devices=1, **quiet
    )
    model = Model(steps=32)
    trainer.fit(model, data(), ckpt_path=resume)
    if folder is not None:
        trainer.save_checkpoint(f"{folder}/checkpoint.ckpt")
    print(f"loss {model.losses[0]:.3f} -> {model.losses[-1]:.3f}")
    return model


if __name__ == "__main__":
    main()
