"""The shared loop as a LightningModule."""

import lightning.pytorch as pl


class Module(pl.LightningModule):
    def __init__(self, task, fail_at=None, manually=False):
        super().__init__()
        self.task, self.model, self.fail_at = task, task.model, fail_at
        self.automatic_optimization = not manually

    def training_step(self, batch, index):
        if self.global_step == self.fail_at:
            raise RuntimeError("the user's own")
        loss = self.task.loss(batch)
        if not self.automatic_optimization:
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()
            self.lr_schedulers().step()
        return loss

    def validation_step(self, batch, index):
        self.log("loss", self.task.loss(batch), on_epoch=True)

    def configure_optimizers(self):
        optimizer = self.task.optimizer()
        scheduler = {"scheduler": self.task.scheduler(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}
