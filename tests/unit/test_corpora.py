"""The training-run corpora under tools/corpora: the same bytes each time, and what they promise to be."""

import json
import sys
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

from corpora.catalogue import CORPORA  # noqa: E402
from corpora.corpus import write  # noqa: E402
from corpora.tensorfile import Bf16, bf16, from_bf16, safetensors  # noqa: E402

sys.path.remove(str(TOOLS))
SCALE = 0.004
TRAINED = ("tiny_gpt", "finetune_real", "finetune_lora", "finetune_rows")  # these take their time
WIDTHS = {"F32": "<f4", "BF16": "<u2", "I64": "<i8"}


def checkpoints(name, count=None):
    count = count or (1 if name in TRAINED else 3)
    for package in CORPORA[name].needs:
        pytest.importorskip(package)
    return list(islice(CORPORA[name].run(SCALE), count))


def tensors(data):
    start = 8 + int.from_bytes(data[:8], "little")
    found = {}
    for name, entry in json.loads(data[8:start]).items():
        low, high = entry["data_offsets"]
        found[name] = np.frombuffer(data[start + low : start + high], WIDTHS[entry["dtype"]]).reshape(entry["shape"])
    return found


def same_share(before, after):
    one, other = tensors(before), tensors(after)
    assert one.keys() == other.keys()
    return sum(np.sum(one[name] == other[name]) for name in one) / sum(array.size for array in one.values())


@pytest.mark.parametrize("name", CORPORA)
def test_the_same_run_again_writes_the_same_bytes(name):
    assert checkpoints(name) == checkpoints(name)


@pytest.mark.parametrize("name", CORPORA)
def test_tracks_name_files_of_every_checkpoint(name):
    for checkpoint in checkpoints(name):
        for track in CORPORA[name].tracks.values():
            assert any(track in (".", path) or path.startswith(f"{track}/") for path in checkpoint)


def test_rounding_to_bf16_is_to_nearest_even():
    bits = np.array([0x3F80_0000, 0x3F80_8000, 0x3F81_8000, 0x3F80_8001, 0xBF80_7FFF], "<u4")
    assert bf16(bits.view("<f4")).bits.tolist() == [0x3F80, 0x3F80, 0x3F82, 0x3F81, 0xBF80]


def test_bf16_there_and_back():
    numbers = np.arange(0x7F80, dtype="<u2")
    assert np.array_equal(bf16(from_bf16(Bf16(numbers))).bits, numbers)


def test_a_safetensors_file_by_hand():
    header = b'{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
    header += b'"b":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}}'
    header += b" " * (-len(header) % 8)
    made = safetensors({"a": np.array([[1, 2]], "<f4"), "b": Bf16(np.array([0x3F80], "<u2"))})
    assert made == len(header).to_bytes(8, "little") + header + b"\0\0\x80\x3f\0\0\0\x40" + b"\x80\x3f"


def test_the_real_library_reads_what_we_write():
    library = pytest.importorskip("safetensors.numpy")
    made = library.load(safetensors({"a": np.arange(6, dtype="<f4").reshape(2, 3), "n": np.array([7], "<i8")}))
    assert made["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert made["n"].tolist() == [7]


def test_adam_walk_halves_are_the_rounded_weights():
    for checkpoint in checkpoints("adam_walk"):
        halves, whole = tensors(checkpoint["model.safetensors"]), tensors(checkpoint["states/weights.safetensors"])
        assert all(np.array_equal(halves[name], bf16(whole[name]).bits) for name in whole)


def test_adam_walk_has_the_signal_that_it_promises():
    from corpora.walks import Adam

    tensor = Adam(1, (200, 100))
    ratios = []
    for _ in range(300):
        tensor.step()
        ratios.append(tensor.exp_avg / np.sqrt(tensor.exp_avg_sq))
    mean = np.mean(np.abs(np.mean(ratios, axis=0)))
    assert 0.15 < mean < 0.25


def test_adam_walk_changes_every_fp32_weight_a_little():
    first, second = checkpoints("adam_walk", 2)
    before, after = tensors(first["states/weights.safetensors"]), tensors(second["states/weights.safetensors"])
    changes = np.concatenate([np.abs(before[name] - after[name]).ravel() for name in before])
    assert np.mean(changes > 0) > 0.99
    assert np.median(changes) < 20 * 1e-4


def test_rl_bf16_keeps_99_of_100_weights():
    found = checkpoints("rl_bf16", 5)
    for before, after in pairwise(found):
        assert 0.985 < same_share(before["model.safetensors"], after["model.safetensors"]) < 0.995


def test_nothing_of_the_first_averages_stays():
    first, second = checkpoints("exp_avg", 2)
    one, other = tensors(first["exp_avg.safetensors"]), tensors(second["exp_avg.safetensors"])
    assert same_share(first["exp_avg.safetensors"], second["exp_avg.safetensors"]) < 0.001
    assert np.mean(np.sign(one["embed.weight"]) == np.sign(other["embed.weight"])) < 0.75


def test_random_bytes_are_new_each_time():
    first, second = checkpoints("random", 2)
    assert np.mean(np.frombuffer(first["random.bin"], "u1") == np.frombuffer(second["random.bin"], "u1")) < 0.01


def test_churn_lays_out_the_same_tensors_again():
    first, second = checkpoints("churn", 2)
    before, after = (tensors(found["inserted/model.safetensors"]) for found in (first, second))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert len(changed) == 1
    assert after.keys() - before.keys() == {"extra.1"}
    assert second["log/train.jsonl"].startswith(first["log/train.jsonl"])
    orders = [list(tensors(found["shuffled/model.safetensors"])) for found in (first, second)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])
    assert b"checkpoint-1/" in first["renamed/state.pt"]
    assert b"checkpoint-10/" in second["renamed/state.pt"]
    for checkpoint, shards in ((first, 2), (second, 4)):
        parts = [tensors(data) for name, data in sorted(checkpoint.items()) if name.startswith("resharded/")]
        assert len(parts) == shards
        whole = tensors(checkpoint["inserted/model.safetensors"])
        for name in parts[0]:
            assert np.array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_churn_holds_the_same_state_in_three_forms():
    found = checkpoints("churn", 3)
    assert [sorted(name for name in one if name.startswith("forms/")) for one in found] == [
        ["forms/model.safetensors"],
        ["forms/model.pt"],
        ["forms/.metadata", "forms/__0_0.distcp"],
    ]


def test_the_base_of_adapters_is_frozen():
    first, second = checkpoints("finetune_lora", 2)
    assert first["base/model.safetensors"] == second["base/model.safetensors"]
    assert same_share(first["adapter_model.safetensors"], second["adapter_model.safetensors"]) < 0.5


def test_few_rows_of_the_table_change_and_nothing_else():
    first, second = (tensors(found["model.safetensors"]) for found in checkpoints("finetune_rows", 2))
    changed = {name for name in first if not np.array_equal(first[name], second[name])}
    assert changed == {"embeddings.word_embeddings.weight"}
    table = "embeddings.word_embeddings.weight"
    rows = np.mean(np.any(first[table] != second[table], axis=1))
    assert 0 < rows < 0.5


def test_checkpoints_are_directories_of_files(tmp_path):
    write(CORPORA["random"], tmp_path / "run", checkpoints=2, scale=SCALE)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.bin")) == [
        "run/000/random.bin",
        "run/001/random.bin",
    ]
