# labels: quick
"""The official reader reads Cairn's event files: scalars, text, and a resumed run whose later steps are purged."""
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
program = Path(sys.argv[1]).with_name("test_trainer") if len(sys.argv) > 1 else ROOT / "build/bin/test_trainer"
try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as DashboardReader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util.tensor_util import make_ndarray
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)
if not program.exists():
    print(f"skipped: {program} is not built")
    sys.exit(77)

with tempfile.TemporaryDirectory() as folder:
    run = subprocess.run([program, "--gtest_also_run_disabled_tests", "--gtest_filter=TensorBoardExchange.DISABLED_Write"],
                         env=dict(os.environ, CAIRN_EXCHANGE=folder), capture_output=True, text=True)
    assert run.returncode == 0 and "[  PASSED  ] 1 test" in run.stdout, run.stdout + run.stderr

    files = sorted(Path(folder).iterdir())
    assert len(files) == 2, files
    events = [[Event.FromString(e) for e in RawEventFileLoader(str(f)).Load()] for f in files]
    assert len(events[0]) == 27 and len(events[1]) == 7, [len(e) for e in events]
    assert all(e[0].file_version == "brain.Event:2" for e in events)
    assert events[1][1].session_log.status == 1 and events[1][1].step == 11
    assert all(abs(e.wall_time - files[0].stat().st_mtime) < 60 for f in events for e in f)
    again = [e.SerializeToString() for e in events[0]]  # byte for byte what the official encoder writes
    assert again == list(RawEventFileLoader(str(files[0])).Load())

    read = EventAccumulator(folder)
    read.Reload()
    assert set(read.Tags()["scalars"]) == {"train/loss", "odd/größe", "odd/nan", "big/step"}, read.Tags()
    losses = {s.step: s.value for s in read.Scalars("train/loss")}
    assert sorted(losses) == list(range(1, 16)), losses
    for step, value in losses.items():
        assert math.isclose(value, 1 / step if step < 11 else 100 + step, rel_tol=1e-6), (step, value)
    assert math.isnan(read.Scalars("odd/nan")[0].value) and read.Scalars("odd/größe")[0].value == -math.inf
    assert [s.step for s in read.Scalars("big/step")] == [], "purged: it is a later step"

    page = DashboardReader(folder)  # what the TensorBoard page reads; the reader above leaves text alone when it purges
    page.Reload()
    texts = page.Tensors("sample")
    assert [t.step for t in texts] == [7], "the sample of step 18 is purged"
    assert make_ndarray(texts[0].tensor_proto)[0].decode() == "*früh* sample\n\nwith two paragraphs"
    assert page.SummaryMetadata("sample").plugin_data.plugin_name == "text"
    assert page.SummaryMetadata("train/loss").plugin_data.plugin_name == "scalars"
    assert sorted(t.step for t in page.Tensors("train/loss")) == list(range(1, 16))
print("event files: ok")
