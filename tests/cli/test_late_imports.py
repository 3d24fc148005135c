import subprocess
import sys
import textwrap


def run_alone(code: str) -> None:
    """Run code in an interpreter in which nothing is imported yet."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_late_loads_compiler_and_metrics_only_where_they_are_used():
    run_alone(
        """
        import gc, sys
        from dipo_lightning.cli.late_imports import import_late, is_late
        pl = import_late("lightning.pytorch")
        assert gc.isenabled() and pl is sys.modules["lightning.pytorch"] is import_late("lightning.pytorch")
        import torch
        from torchmetrics import Metric
        from lightning.pytorch.utilities.compile import OptimizedModule
        unused = {"sympy", "matplotlib", "torchmetrics.functional", "scipy", "transformers"}
        assert is_late("torch._dynamo") and not unused & set(sys.modules)
        module = pl.LightningModule()
        assert not isinstance(module, OptimizedModule)

        from torchmetrics.classification import BinaryAUROC
        import torchmetrics
        auroc = BinaryAUROC()
        auroc.update(torch.tensor([0.1, 0.9]), torch.tensor([0, 1]))
        assert auroc.compute() == 1 and isinstance(auroc, Metric)
        assert torchmetrics.MeanMetric.__mro__[2] is Metric and torchmetrics.Metric is Metric
        assert torchmetrics.__version__ and not hasattr(torchmetrics, "no_such_name")
        mean = torchmetrics.MeanMetric()
        mean.update(1.0)
        figure, _ = mean.plot()
        assert isinstance(figure, sys.modules["matplotlib.figure"].Figure)

        compiled = torch.compile(module)
        assert isinstance(compiled, OptimizedModule) and type(compiled) is torch._dynamo.OptimizedModule
        assert pl.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False).strategy is not None
        """
    )


def test_import_late_leaves_what_is_loaded_already():
    run_alone(
        """
        import torch._dynamo, torchmetrics
        from dipo_lightning.cli.late_imports import import_late
        import_late("lightning.pytorch")
        from lightning.pytorch.utilities.compile import OptimizedModule
        assert OptimizedModule is torch._dynamo.OptimizedModule
        """
    )


def test_a_step_of_a_transformer_loads_no_compiler_and_what_was_marked_for_it_is_known_to_it_later():
    run_alone(
        """
        import sys
        from dipo_lightning.cli.late_imports import import_late, is_late
        import_late("lightning.pytorch")
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM
        tiny = dict(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        model = LlamaForCausalLM(LlamaConfig(**tiny))
        optimizer = torch.optim.AdamW(model.parameters())
        ids = torch.tensor([[1, 2, 3]])
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert is_late("torch._dynamo") and is_late("scipy.optimize") and is_late("torch._inductor")

        @torch.compiler.disable
        def exempt(x):
            return torch.compiler.is_compiling(), x + 1

        @torch.compiler.disable(recursive=True)
        def exempt_too(x):
            return torch.compiler.is_compiling(), x + 1

        @torch._dynamo.allow_in_graph
        def whole(x):
            return x + 1

        assert exempt(ids)[0] is False and is_late("torch._dynamo")
        compiled = torch.compile(lambda x: (exempt(x)[0], exempt_too(x)[0], whole(x)), backend="eager")
        assert compiled(ids)[:2] == (False, False) and not is_late("torch._dynamo")
        assert torch._dynamo.trace_rules.is_callable_allowed(whole)
        assert compiled(ids)[2].equal(ids + 1)
        """
    )


def test_a_module_inside_a_late_one_is_loaded_once():
    run_alone(
        """
        import importlib.util, sys
        from dipo_lightning.cli.late_imports import import_late, is_late
        import_late("lightning.pytorch")
        assert importlib.util.find_spec("torch._dynamo") is not None and is_late("torch._dynamo")
        import torch._dynamo.config
        assert torch._dynamo.config is sys.modules["torch._dynamo"].eval_frame.config
        assert torch._dynamo.config.__spec__.origin.endswith("config.py")
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
        assert isinstance(TransformGetItemToIndex, type)

        from scipy.optimize import linear_sum_assignment
        assert is_late("scipy.optimize")
        assert [list(one) for one in linear_sum_assignment([[1, 0], [0, 1]])] == [[0, 1], [1, 0]]
        from scipy.optimize import minimize_scalar
        import scipy
        assert abs(minimize_scalar(lambda x: (x - 1) ** 2).x - 1) < 1e-6
        assert scipy.optimize.linear_sum_assignment is not linear_sum_assignment
        """
    )


def test_a_late_name_of_the_compiler_is_loaded_when_it_is_used():
    run_alone(
        """
        from dipo_lightning.cli.late_imports import import_late, is_late
        import_late("lightning.pytorch")
        from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
        assert is_late("torch._dynamo")
        with TransformGetItemToIndex():
            assert not is_late("torch._dynamo")
        """
    )


def test_further_commands_import_neither_compiler_nor_metrics():
    run_alone(
        """
        import sys
        from contextlib import suppress
        from dipo_lightning.cli.late_imports import is_late
        from dipo_lightning.cli.main import COMMANDS, main
        for command in COMMANDS:
            with suppress(SystemExit):
                main([command, "--help"])
            assert "jsonargparse" in sys.modules and is_late("torch._dynamo"), command
            assert not {"matplotlib", "torchmetrics.functional", "scipy.stats"} & set(sys.modules), command
        assert "lightning.pytorch" in sys.modules
        """
    )
