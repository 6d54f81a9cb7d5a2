import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.aot.hlo import Module, size_bytes
from scripts.aot.table import TABLE, worse

HLO = """HloModule example

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %wrapped = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"5"}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%wrapped)
}

%cond (p: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%p.1, %p.1), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[16,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %half = bf16[8,4]{1,0} convert(%a), metadata={op_name="jit(f)/convert"}
  %w = (s32[], f32[8,4]{1,0}) while(%a), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %g = f32[16,4]{1,0} all-gather-start(%half), dimensions={0}
}
"""


def test_hlo_text_is_read():
    module = Module(HLO)
    kernels = {instruction.name: moved for instruction, moved in module.kernels()}
    assert kernels == {"half": 128 + 64, "wrapped": 256, "less": 2 * (4 + 128) + 1, "g": 64 + 256}
    assert module.collectives() == {"all-gather": 1}
    assert module.whiles() == [3]
    assert module.cycles() == 15


def test_sizes_of_types():
    assert size_bytes("(f32[8,4]{1,0}, bf16[2], pred[])") == 128 + 4 + 1
    with pytest.raises(ValueError, match="no ENTRY"):
        Module("nothing")


def test_a_worse_number_is_told():
    kept = {"kernels": 100, "mb": 50.0, "temp_mib": 1.0, "loops_of_unknown_length": 0}
    kept |= {"collectives": {}, "clips_per_s": 900}
    assert worse(kept, kept) == []
    assert worse(kept | {"mb": 52.0}, kept) == ["mb 52.0 instead of 50.0"]
    assert worse(kept | {"collectives": {"all-gather": 2}}, kept) == ["2 all-gather instead of 0"]
    assert worse(kept | {"clips_per_s": 800}, kept) == ["clips_per_s 800 instead of 900"]


def test_the_kept_table_meets_the_targets():
    rows = json.loads(TABLE.read_text())["programs"]
    assert rows["h100: encoder tiny bf16-fast"]["mb"] <= 225
    assert all(not row["collectives"] for row in rows.values())


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="jax[cuda13] is not installed"
)
def test_the_smallest_encoder_compiles_for_an_h100():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.aot", "check", "--only", "h100: encoder nano bf16-fused"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr
