"""Hours add up from what was measured; what is scaled says so and follows the roofline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import stages
from pipelines.config import RunConfig
from pipelines.errors import ConfigError, DataError, MachineError
from pipelines.estimate import throughput
from pipelines.estimate.devices import Device, find_device, read_matrix, this_cpu
from pipelines.estimate.forecast import Forecast, forecast
from pipelines.estimate.hours import Hours
from pipelines.estimate.throughput import Measurement, Throughput
from tests.pipelines.estimate.conftest import measurement, tiny_config

GPUS = [
    {"name": "Slow 10GB", "aliases": ["S"], "memory_gb": 10, "bandwidth_gb_s": 100, "bf16_tflops": 10},
    {"name": "Twice 20GB", "aliases": [], "memory_gb": 20, "bandwidth_gb_s": 200, "bf16_tflops": 20},
    {"name": "Wide", "aliases": [], "memory_gb": 20, "bandwidth_gb_s": 800, "bf16_tflops": 20},
    {"name": "Old", "aliases": [], "memory_gb": 16, "bandwidth_gb_s": 900, "bf16_tflops": None, "note": "no bf16"},
]


@pytest.fixture
def config(tiny: Path) -> RunConfig:
    """The tiny recipe, its data prepared."""
    config = tiny_config(tiny)
    stages.prepare(config)
    return config


@pytest.fixture
def matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gpus.json"
    priced = [{**gpu, "typical_price_per_hour_usd": 2.0} for gpu in GPUS]
    path.write_text(json.dumps({"gpus": priced}))
    monkeypatch.setattr("pipelines.estimate.hours.find_device", lambda name: find_device(name, path))
    return path


def file_of(device: Device, *entries: Measurement) -> Throughput:
    here = {"name": device.name, "kind": device.kind, "cores": device.cores}
    return Throughput(Path(f"{device.key}.json"), here, entries)


def hours_of(found: Forecast) -> Hours:
    assert isinstance(found.hours, Hours)
    return found.hours


def test_a_measured_run_is_the_sum_of_its_parts(config: RunConfig) -> None:
    found = forecast(config, this_cpu(), [file_of(this_cpu(), measurement(config))], price_per_hour=3.6)
    hours, volume = hours_of(found), found.volume
    epoch, one_pass = volume.targets / 1000, volume.queries * (1 / 100 + 1 / 200)
    closing = 2 * one_pass + volume.queries / 200  # validation and test of the model, test of popularity
    assert hours.measured and hours.rests_on.startswith("measured on this machine")
    assert hours.total.middle == pytest.approx(7 + 3 * (epoch + one_pass + 0.5) + closing)
    assert hours.total.low == pytest.approx(hours.total.middle - volume.targets * 3 * (1 / 1000 - 1 / 1500))
    assert hours.total.high == pytest.approx(hours.total.middle + volume.targets * 3 * (1 / 500 - 1 / 1000))
    assert hours.earliest == pytest.approx(7 + 2 * (epoch + one_pass + 0.5) + closing)  # patience 1: two epochs
    assert found.dollars(hours.total.middle) == pytest.approx(hours.total.middle / 1000)


@pytest.mark.parametrize("control", ["shuffle_ties", "shuffle_order"])
def test_further_protocols_and_controls_are_evaluations_too(tiny: Path, config: RunConfig, control: str) -> None:
    more = tiny_config(tiny, "evaluation.also=[loo-full]", f"evaluation.{control}=true")
    files = [file_of(this_cpu(), measurement(config))]
    plain, longer = (hours_of(forecast(c, this_cpu(), files)) for c in (config, more))
    one_pass = 60 * (1 / 100 + 1 / 200)
    assert longer.closing.middle == pytest.approx(plain.closing.middle + 2 * (one_pass + 60 / 200))


def test_validation_every_other_epoch(tiny: Path, config: RunConfig) -> None:
    files = [file_of(this_cpu(), measurement(config))]
    every, other = (
        hours_of(forecast(c, this_cpu(), files)) for c in (config, tiny_config(tiny, "training.eval_every=2"))
    )
    assert other.validation.middle == pytest.approx(every.validation.middle * 2 / 3)  # epochs 2 and 3 of 3


@pytest.mark.parametrize(
    "change", ["model.hidden=32", "loader.rows_per_batch=8", "training.accumulate=2", "model.loss.name=bpr"]
)
def test_another_model_or_batch_is_never_called_measured(tiny: Path, config: RunConfig, change: str) -> None:
    other = tiny_config(tiny, change)
    found = forecast(other, this_cpu(), [file_of(this_cpu(), measurement(config))])
    assert not hours_of(found).measured and hours_of(found).rests_on.endswith("not measured")
    assert found.as_dict()["measured"] is False


SASREC = ("model={name: sasrec, hidden: 16, max_length: 10}", "loader.batch=tokens", "model.loss.precision=float32")


def test_steps_of_another_kind_are_no_measurement(tiny: Path, config: RunConfig, matrix: Path) -> None:
    """Compiled, captured or plain: each answers for itself alone, and nothing is scaled from one to another."""
    gpu, kinds = find_device("S", matrix), ({}, {"compile": True}, {"cuda_graph": True})
    for own in kinds:
        asked = tiny_config(tiny, *SASREC, *(f"training.{key}=true" for key in own))
        for other in kinds:
            entry = measurement(asked, narrow=2, resident=True, **other)
            found = forecast(asked, gpu, [file_of(gpu, entry)])
            if own == other:
                assert hours_of(found).measured
                continue
            settings = " and ".join(f"training.{key}={str(key in own).lower()}" for key in ("compile", "cuda_graph"))
            assert str(found.hours).startswith(f"no throughput file holds 'sasrec' with {settings}: measure it with")
    both = [measurement(asked, narrow=2, resident=True, **kind, startup_s=n) for n, kind in enumerate(kinds)]
    assert hours_of(forecast(asked, gpu, [file_of(gpu, *both)])).startup == 2


def test_batches_made_elsewhere_are_scaled_and_what_auto_came_to_decides(
    tiny: Path, config: RunConfig, matrix: Path
) -> None:
    gpu = find_device("S", matrix)
    host, device = measurement(config, narrow=2), measurement(config, narrow=2, resident=True, startup_s=9.0)
    for sets, own, other in ((["loader.resident=auto"], device, host), (["loader.resident=off"], host, device)):
        asked = tiny_config(tiny, *sets)
        assert hours_of(forecast(asked, gpu, [file_of(gpu, other, own)])) == hours_of(
            forecast(asked, gpu, [file_of(gpu, own)])
        )
        assert hours_of(forecast(asked, gpu, [file_of(gpu, own)])).measured
        assert not hours_of(forecast(asked, gpu, [file_of(gpu, other)])).measured
    cpu = forecast(config, this_cpu(), [file_of(this_cpu(), measurement(config))])
    assert hours_of(cpu).measured and cpu.memory.resident == 0, "on a CPU auto leaves batches to the host"


def test_a_graph_is_not_estimated_where_none_can_be_captured(tiny: Path, config: RunConfig, matrix: Path) -> None:
    asked = tiny_config(tiny, *SASREC, "training.cuda_graph=true")
    with pytest.raises(MachineError, match="training.cuda_graph: a CUDA graph needs a GPU"):
        forecast(asked, this_cpu(), [])
    with pytest.raises(ConfigError, match="training.cuda_graph: only updates of one batch, by one process"):
        forecast(asked, find_device("S", matrix), [], gpus=2)


def test_another_catalogue_is_scaled(config: RunConfig) -> None:
    found = forecast(config, this_cpu(), [file_of(this_cpu(), measurement(config, items=80))])
    assert not hours_of(found).measured


@pytest.mark.parametrize("model", ["sasrec", "tisasrec-mhc"])
def test_attention_on_longer_rows_is_scaled_up(tiny: Path, config: RunConfig, model: str) -> None:
    """Measured on rows of 2 tokens, asked for the recipe's: a target costs more than it did there."""
    other = tiny_config(tiny, f"model={model}", "model.hidden=16")
    per_step = find_per_step(other)
    spans = []
    for length in (length_of(other), 2.0):
        entry = measurement(other, targets_per_step=per_step, shared_length=length, items=80, step_overhead_s=0.0)
        found = hours_of(forecast(other, find_device("A100"), [file_of(this_cpu(), entry)]))
        assert not found.measured and found.rests_on.endswith("not measured")
        spans.append(found.training.middle)
    assert spans[1] > spans[0]


def test_scaled_to_itself_nothing_changes(tiny: Path, config: RunConfig) -> None:
    """Blind and aware cost the same: a scaled figure between them is the measured one."""
    blind = tiny_config(tiny, "model.query_time=blind")
    per_step = find_per_step(config)
    files = [file_of(this_cpu(), measurement(config, targets_per_step=per_step, shared_length=length_of(config)))]
    measured, scaled = (hours_of(forecast(c, this_cpu(), files)) for c in (config, blind))
    assert measured.measured and not scaled.measured
    assert scaled.training.middle == pytest.approx(measured.training.middle)


def find_per_step(config: RunConfig) -> float:
    volume = forecast(config, this_cpu(), []).volume
    return volume.targets / volume.batches


def length_of(config: RunConfig) -> float:
    return forecast(config, this_cpu(), []).volume.shared_length


def test_a_gpu_of_twice_the_peaks_takes_half_the_slope(config: RunConfig, matrix: Path) -> None:
    slow, twice, wide = (find_device(name, matrix) for name in ("S", "twice 20gb", "Wide"))
    per_step = find_per_step(config)
    speed = {"targets_per_s": (1000.0,), "targets_per_step": per_step, "step_overhead_s": 0.02 * per_step / 1000}
    entry = measurement(config, narrow=2, resident=True, **speed)
    files = [file_of(slow, entry)]
    here, there, wider = (hours_of(forecast(config, gpu, files)) for gpu in (slow, twice, wide))
    targets = 3 * forecast(config, slow, files).volume.targets
    overhead = 0.02 * targets / 1000
    assert here.measured and here.training.middle == pytest.approx(targets / 1000)
    assert not there.measured and "not measured" in there.rests_on
    slope = targets / 1000 - overhead
    assert there.training.middle == pytest.approx(overhead + slope / 2)
    assert there.training.low == pytest.approx(slope / 2)  # overhead hidden behind the work
    assert there.training.high == pytest.approx(overhead + slope / 2)
    assert wider.training.low == pytest.approx(slope / 8) and wider.training.high == pytest.approx(overhead + slope / 2)
    assert wider.training.low < wider.training.middle < wider.training.high


def test_a_step_never_takes_less_than_the_host_needs(config: RunConfig, matrix: Path) -> None:
    """From a CPU to a GPU a thousand times as fast: what is left is Python and dispatch."""
    found = forecast(config, find_device("Wide", matrix), [file_of(this_cpu(), measurement(config))])
    assert hours_of(found).training.low >= 0.01 * found.schedule.steps * 0.999


def test_several_gpus_are_a_supposition(config: RunConfig, matrix: Path) -> None:
    gpu = find_device("S", matrix)
    files = [file_of(gpu, measurement(config, narrow=2, resident=True))]
    one, four = forecast(config, gpu, files), forecast(config, gpu, files, gpus=4)
    assert hours_of(one).measured and not hours_of(four).measured
    host = 0.01 * one.schedule.steps  # of every step, whoever shares the batch
    middle = host + (hours_of(one).training.middle - host) / 4
    assert hours_of(four).training.middle == pytest.approx(middle)
    assert hours_of(four).training.low >= host * 0.999
    assert hours_of(four).training.high == pytest.approx(hours_of(one).training.high)
    assert four.price.per_hour == 8.0 and one.price.per_hour == 2.0
    with pytest.raises(ConfigError, match="--gpus"):
        forecast(config, this_cpu(), files, gpus=2)


def test_without_a_measurement_hours_are_not_known(config: RunConfig, matrix: Path) -> None:
    assert isinstance(forecast(config, this_cpu(), []).hours, str)
    other = replace(this_cpu(), name="Another", cores=64)
    assert "nothing was measured on this CPU" in str(
        forecast(config, this_cpu(), [file_of(other, measurement(config))]).hours
    )
    old = forecast(config, find_device("Old", matrix), [file_of(this_cpu(), measurement(config))])
    assert "no bfloat16 units" in str(old.hours) and old.memory.fits and old.as_dict()["hours"] is None


def test_prices_in_order(tiny: Path, config: RunConfig, matrix: Path) -> None:
    gpu = find_device("S", matrix)
    priced = tiny_config(tiny, "guards.price_per_hour=5")
    assert forecast(priced, gpu, [], price_per_hour=1.5).price.per_hour == 1.5
    assert forecast(priced, gpu, []).price.per_hour == 5
    assert forecast(config, gpu, []).price.source.startswith("typical")
    assert forecast(config, this_cpu(), []).price.per_hour is None
    with pytest.raises(ConfigError, match="--price-per-hour"):
        forecast(config, gpu, [], price_per_hour=0.0)


# --- devices and files ---


def test_names_of_gpus_are_read_generously(matrix: Path) -> None:
    assert find_device("NVIDIA Twice-20GB", matrix).name == "Twice 20GB"
    assert find_device("s", matrix).room == 9_000_000_000
    with pytest.raises(ConfigError, match="unknown GPU 'Twise 20GB'. did you mean 'Twice 20GB'?"):
        find_device("Twise 20GB", matrix)
    with pytest.raises(MachineError, match="cannot be read"):
        find_device("S", matrix.parent / "nosuch.json")


@pytest.mark.parametrize("name", ["A6000", "A100", "H100", "H200", "L40S", "4090", "NVIDIA H100 80GB HBM3"])
def test_the_gpus_that_are_rented_are_listed(name: str) -> None:
    device = find_device(name)
    assert device.kind == "cuda" and device.bf16_flops and device.bandwidth and device.room > 10e9


def test_the_list_of_gpus_is_whole() -> None:
    listed = read_matrix()
    names = [name.lower() for gpu in listed for name in (gpu["name"], *gpu["aliases"])]
    assert len(names) == len(set(names)) and len(listed) > 10


def test_a_measurement_survives_its_file_and_replaces_its_older_self(config: RunConfig, tmp_path: Path) -> None:
    first, second = measurement(config), measurement(config, startup_s=9.0)
    other = measurement(config, recipe="another")
    kinds = [measurement(config, **{key: True}) for key in ("compile", "cuda_graph", "resident")]
    for entry in (first, other, second, *kinds):
        path = throughput.write(this_cpu(), entry, tmp_path)
    assert throughput.read_all([tmp_path])[0].measurements == (other, second, *kinds)
    assert path.stem == this_cpu().key and throughput.read(path).device["kind"] == "cpu"


@pytest.mark.parametrize("text", ["{", "[]", '{"device": {}, "measurements": [{"recipe": "x"}]}'])
def test_a_file_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(DataError, match="gpu.json: not a throughput file.*measure again"):
        throughput.read_all([tmp_path])


def test_an_older_entry_is_replaced_though_options_came_later(config: RunConfig, tmp_path: Path) -> None:
    """Else the older one, which stands first, would go on to answer."""
    new, resolved = measurement(config, startup_s=9.0), config.resolved()
    older = {key: value for key, value in resolved["loader"].items() if key not in ("deal", "resident", "shuffle")}
    model = {key: value for key, value in resolved["model"].items() if key != "use_time"}
    gone = measurement(config, model={**model, "nosuch": 1})
    for entry in (gone, measurement(config, loader=older, model=model), new):
        path = throughput.write(this_cpu(), entry, tmp_path)
    assert throughput.read(path).measurements == (gone, new)
    other = {**older, "rows_per_batch": 5}
    throughput.write(this_cpu(), measurement(config, loader=other), tmp_path)
    assert len(throughput.read(path).measurements) == 3


def test_a_file_from_before_there_were_kinds_of_steps_holds_plain_ones(config: RunConfig, tmp_path: Path) -> None:
    path = throughput.write(this_cpu(), measurement(config), tmp_path)
    content = json.loads(path.read_text())
    for key in ("compile", "cuda_graph", "resident"):
        assert content["measurements"][0].pop(key) is False
    path.write_text(json.dumps(content))
    assert throughput.read(path).measurements == (measurement(config),)


def test_an_option_that_came_later_has_its_default(config: RunConfig) -> None:
    model = config.resolved()["model"]
    older = measurement(config, model={key: value for key, value in model.items() if key != "use_time"})
    assert older.answers(config, 40, (4, 4))
    gone = measurement(config, model={**model, "nosuch": 1})
    with pytest.raises(DataError, match="another version of ss4rec"):
        gone.options()


def test_shipped_throughput_files_can_be_read_and_say_where_they_come_from() -> None:
    for file in throughput.read_all([throughput.SHIPPED]):
        for entry in file.measurements:
            assert entry.options() and len(entry.targets_per_s) >= 3
            assert {"machine", "versions", "commit", "load", "day"} == set(entry.measured_on)
