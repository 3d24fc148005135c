import subprocess
import sys
import textwrap


def run_alone(code: str) -> None:
    """Run code in an interpreter in which nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_lightning_loads_compiler_and_metrics_only_where_they_are_used():
    run_alone(
        """
        import sys
        from dipo_lightning.cli.lightning_import import import_lightning
        import_lightning()
        import torch
        from torchmetrics import Metric
        from lightning.pytorch.utilities.compile import OptimizedModule
        import lightning.pytorch as pl
        assert not {"torch._dynamo", "torchmetrics.functional", "scipy", "transformers"} & set(sys.modules)
        module = pl.LightningModule()
        assert not isinstance(module, OptimizedModule)

        from torchmetrics.classification import BinaryAUROC
        import torchmetrics
        auroc = BinaryAUROC()
        auroc.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
        assert auroc.compute() == 1 and isinstance(auroc, Metric)
        assert torchmetrics.MeanMetric.__mro__[2] is Metric and torchmetrics.Metric is Metric
        assert torchmetrics.__version__ and not hasattr(torchmetrics, "no_such_name")

        compiled = torch.compile(module)
        assert isinstance(compiled, OptimizedModule) and type(compiled) is torch._dynamo.OptimizedModule
        assert pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False).strategy is not None
        """
    )


def test_import_lightning_leaves_what_is_loaded_already():
    run_alone(
        """
        import torch._dynamo, torchmetrics
        from dipo_lightning.cli.lightning_import import import_lightning
        import_lightning()
        from lightning.pytorch.utilities.compile import OptimizedModule
        assert OptimizedModule is torch._dynamo.OptimizedModule
        """
    )
