"""Finding the run that produced a model file."""

import shutil
from pathlib import Path

import pytest

from pipeline.core.errors import PipelineError
from pipeline.tracking import delivery, find_run, runs
from tests.helpers import small_params, stored


def test_a_model_file_leads_to_its_runs(
    results: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model file is matched by content, wherever it is; a file that no run produced is an error."""
    runs.log_evaluation(small_params())
    delivery.deliver_all(results)
    copy = shutil.copy("models/autoencoder.safetensors", "taken home.safetensors")
    for arguments in ([], [copy]):
        monkeypatch.setattr("sys.argv", ["find_run", *arguments])
        find_run.main()
        run_id = stored(store)[0].info.run_id
        assert capsys.readouterr().out == f"{run_id}  digits k=2 seed=0  FINISHED  code without git\n"
    Path(copy).write_bytes(b"other weights")
    with pytest.raises(PipelineError, match=r"no run in the store made taken home\.safetensors"):
        find_run.main()
    Path(copy).unlink()
    with pytest.raises(PipelineError, match=r"there is no file taken home\.safetensors"):
        find_run.main()
