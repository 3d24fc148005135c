"""The pool of test processes itself."""

import pytest

from tests.distributed.pool import Crashed, Pool


@pytest.mark.slow
def test_a_job_runs_again_in_new_processes_after_one_crash(tmp_path):
    counter = tmp_path / "counter"
    pool = Pool(tmp_path)
    try:
        counter.write_text("0")
        assert pool.run("crash", counter=str(counter), times=1) == [0, 1]
        assert "Segmentation fault" in (tmp_path / "rank0.txt").read_text()
        counter.write_text("0")
        with pytest.raises(Crashed, match="rank 0: the process died with exit code -11"):
            pool.run("crash", counter=str(counter), times=2)
    finally:
        pool.stop()
