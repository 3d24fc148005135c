"""Classes of a user's project whose options are secrets."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from dipo_lightning.methods.gradient_ascent import GradDiffModule


class Notifier(Callback):
    """A callback that would tell somebody that the run has ended."""

    def __init__(self, api_key: str, url: str, aws_access_key_id: str, headers: dict[str, str] | None = None) -> None:
        self.options = api_key, url, aws_access_key_id, headers


class HubModule(GradDiffModule):
    """A method with an access token among its hyper-parameters."""

    def __init__(self, pretrained: str, hub_token: str = "", **options: Any) -> None:
        super().__init__(pretrained, **options)
        self.save_hyperparameters({"hub_token": hub_token})
