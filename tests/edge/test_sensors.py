"""Each Jetson's rails, clocks, temperatures and throttle counters, read from trees laid out as the boards lay them out.

The trees are written from the boards' documentation: no value in them was measured.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from yolo_mkd.edge.health import device_health, device_warnings, drift_causes
from yolo_mkd.edge.sensors import Sampler, Sensors, jetpack_version

ORIN_MODES = "# comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
RELEASE = "# R{} (release), REVISION: {}, GCID: 1, BOARD: generic, EABI: aarch64, DATE: Thu\n"


def write(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


def ina3221(folder: str, rails: list[tuple[str, int, int]]) -> dict[str, object]:
    """An ina3221 of JetPack 5 or later: (label, mV, mA) of its channels, and channel 7, which is no rail."""
    files: dict[str, object] = {f"{folder}/name": "ina3221"}
    for n, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files[f"{folder}/in{n}_label"] = label
        files[f"{folder}/in{n}_input"] = millivolts
        files[f"{folder}/curr{n}_input"] = milliamperes
    return {**files, f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": 99}


def gpu(folder: str, clock_hz: int, limit_hz: int, low_hz: int = 306000000) -> dict[str, object]:
    return {
        f"{folder}/cur_freq": clock_hz, f"{folder}/max_freq": limit_hz, f"{folder}/min_freq": low_hz,
        f"{folder}/governor": "nvhost_podgov",
    }  # fmt: skip


def cpu(n: int, clock_khz: int, limit_khz: int, governor: str = "schedutil") -> dict[str, object]:
    folder = f"sys/devices/system/cpu/cpu{n}/cpufreq"
    return {
        f"{folder}/scaling_cur_freq": clock_khz, f"{folder}/scaling_max_freq": limit_khz,
        f"{folder}/scaling_min_freq": 729600, f"{folder}/scaling_governor": governor,
    }  # fmt: skip


@pytest.fixture
def orin_nano(tmp_path: Path) -> Path:
    hwmon = "sys/class/hwmon/hwmon"
    return write(tmp_path, {
        **ina3221(hwmon + "1", [("VDD_IN", 5000, 1600), ("VDD_CPU_GPU_CV", 5000, 500), ("VDD_SOC", 5000, 400)]),
        f"{hwmon}0/name": "soctherm_oc", f"{hwmon}0/oc1_event_cnt": 0, f"{hwmon}0/oc3_event_cnt": 27390,
        **gpu("sys/class/devfreq/17000000.gpu", 624750000, 1020000000),
        **cpu(0, 1500000, 1728000), **cpu(5, 1728000, 1728000),
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": 51250,
        "sys/class/thermal/thermal_zone1/type": "cv0-thermal", "sys/class/thermal/thermal_zone1/temp": -256000,
        "etc/nv_tegra_release": RELEASE.format(36, "4.3"), "etc/nvpmodel.conf": ORIN_MODES,
        "var/lib/nvpmodel/status": "pmode:0002",
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    })  # fmt: skip


def test_orin_nano_takes_vdd_in_as_the_total(orin_nano):
    sensors = Sensors(orin_nano)
    sample = sensors.sample()
    assert sample["power_w"] == pytest.approx(8.0)
    assert sample["rails_w"] == pytest.approx({"VDD_IN": 8.0, "VDD_CPU_GPU_CV": 2.5, "VDD_SOC": 2.0})
    assert sample["clocks_mhz"] == {"gpu": 624.75, "cpu": 1728.0}
    assert sample["temperatures_c"] == {"cpu-thermal": 51.25}  # a zone that is off is left out
    assert sample["throttle_events"] == {"oc1": 0, "oc3": 27390}
    about = sensors.description()
    assert (about["l4t"], about["jetpack"], about["power_mode"]) == ("36.4.3", "6.2", "MAXN_SUPER")
    assert about["model"] == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert about["clock_limits_mhz"] == {"gpu": 1020.0, "cpu": 1728.0}


def test_agx_orin_sums_its_rails_without_the_unconnected_and_the_shunt_sum(tmp_path):
    write(tmp_path, {
        **ina3221("sys/class/hwmon/hwmon3",
                  [("VDD_GPU_SOC", 19000, 300), ("VDD_CPU_CV", 19000, 100), ("VIN_SYS_5V0", 5000, 800)]),
        **ina3221("sys/class/hwmon/hwmon4", [("NC", 5000, 900), ("VDDQ_VDD2_1V8AO", 5000, 120), ("NC", 0, 0)]),
        "sys/class/devfreq/17000000.ga10b/cur_freq": 1300500000,
        "etc/nv_tegra_release": RELEASE.format(35, "4.1"),
    })  # fmt: skip
    sensors = Sensors(tmp_path)
    assert sorted(sensors.totals) == ["VDDQ_VDD2_1V8AO", "VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"]
    assert sensors.sample()["power_w"] == pytest.approx(5.7 + 1.9 + 4.0 + 0.6)
    assert sensors.sample()["clocks_mhz"] == {"gpu": 1300.5}
    assert sensors.description()["jetpack"] == "5"


def test_xavier_nx_of_jetpack_4_is_read_through_iio(tmp_path):
    device = "sys/bus/iio/devices/iio:device0/"
    write(tmp_path, {
        device + "rail_name_0": "VDD_IN", device + "in_power0_input": 6200,
        device + "rail_name_1": "VDD_CPU_GPU_CV", device + "in_power1_input": 1900,
        **gpu("sys/class/devfreq/17000000.gv11b", 1109250000, 1109250000, low_hz=1109250000),
        "etc/nv_tegra_release": RELEASE.format(32, "7.1"),
    })  # fmt: skip
    sensors = Sensors(tmp_path)
    assert sensors.sample()["power_w"] == pytest.approx(6.2)
    assert sensors.sample()["rails_w"]["VDD_CPU_GPU_CV"] == pytest.approx(1.9)
    assert sensors.governors() == {"gpu": "pinned"}  # jetson_clocks: the least clock is the greatest
    assert sensors.description()["jetpack"] == "4"


def test_nano_takes_pom_5v_in(tmp_path):
    device = "sys/bus/iio/devices/iio:device1/"
    write(tmp_path, {
        device + "rail_name_0": "POM_5V_IN", device + "in_power0_input": 4100,
        device + "rail_name_1": "POM_5V_GPU", device + "in_power1_input": 900,
        device + "rail_name_2": "POM_5V_CPU", device + "in_power2_input": 1200,
    })  # fmt: skip
    assert Sensors(tmp_path).sample()["power_w"] == pytest.approx(4.1)


def test_thor_takes_vin_in_microwatts_and_no_usb_supply(tmp_path):
    hwmon, kernel = "sys/class/hwmon/hwmon", cpu(0, 2601000, 2601000)
    write(tmp_path, {
        f"{hwmon}0/name": "ina238", f"{hwmon}0/in1_label": "VIN", f"{hwmon}0/power1_input": 31250000,
        **ina3221(hwmon + "1", [("VDD_GPU", 12000, 1000), ("VDD_CPU_SOC_MSS", 12000, 700), ("VIN_SYS_5V0", 5000, 900)]),
        f"{hwmon}2/name": "ucsi_source_psy_2_00081", f"{hwmon}2/in0_label": "VBUS", f"{hwmon}2/power1_input": 60000000,
        **gpu("sys/class/devfreq/gpu-nvd-0", 1, 2), **gpu("sys/class/devfreq/gpu-gpc-0", 1575000000, 1575000000),
        "sys/class/devfreq/bwmgr/cur_freq": 4266000000, "sys/class/devfreq/bwmgr/max_freq": 4266000000,
        **kernel, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_cur_freq": 242000,
        "etc/nv_tegra_release": RELEASE.format(38, "2.0"),
    })  # fmt: skip
    sensors = Sensors(tmp_path)
    sample = sensors.sample()
    assert sample["power_w"] == pytest.approx(31.25) and "VBUS" not in sample["rails_w"]
    assert sample["clocks_mhz"] == {
        "gpu": 1575.0,
        "emc": 4266.0,
        "cpu": 242.0,
    }  # the hardware's clock, not the kernel's
    assert sensors.description()["jetpack"] == "7.0"


@pytest.mark.parametrize(
    ("name", "read"),
    [("17000000.gpu", True), ("57000000.gpu", True), ("17000000.gv11b", True), ("17000000.gp10b", True),
     ("17000000.ga10b", True), ("gpu-gpc-0", True), ("gpu-nvd-0", False), ("15340000.vic", False)],
)  # fmt: skip
def test_gpu_is_told_from_the_other_engines_by_its_name(tmp_path, name, read):
    write(tmp_path, {f"sys/class/devfreq/{name}/cur_freq": 900000000})
    assert Sensors(tmp_path).sample()["clocks_mhz"] == ({"gpu": 900.0} if read else {})


def test_unreadable_rail_gives_no_power_instead_of_a_partial_sum(tmp_path):
    write(tmp_path, ina3221("sys/class/hwmon/hwmon3", [("VDD_GPU_SOC", 19000, 300), ("VDD_CPU_CV", 19000, 100)]))
    (tmp_path / "sys/class/hwmon/hwmon3/curr2_input").unlink()
    assert Sensors(tmp_path).sample()["power_w"] is None


def test_machine_without_sensors_has_empty_figures(tmp_path):
    sensors = Sensors(tmp_path)
    assert sensors.sample() == {
        "power_w": None, "rails_w": {}, "temperatures_c": {}, "clocks_mhz": {}, "throttle_events": {},
    }  # fmt: skip
    with Sampler(sensors) as sampler:
        pass
    found = device_health([], sampler.samples, 10.0, sensors.description())
    assert found["power"] is None and found["warnings"] == [] and found["power_mode"] is None


@pytest.mark.parametrize(
    ("release", "known"),
    [
        ("36.4.7", "6.2.1"),
        ("36.3.0", "6"),
        ("38.4.0", "7.1"),
        ("39.2", "7.2"),
        ("35.4.1", "5"),
        ("99.1", None),
        (None, None),
    ],
)
def test_jetpack_is_given_in_full_or_by_its_major_version(release, known):
    assert jetpack_version(release) == known


def trace(*some: tuple[float, float, float, int]) -> list[dict]:
    """Samples of (watts, GPU clock, degrees, events)."""
    return [
        {"t_s": n / 10, "power_w": w, "rails_w": {"VDD_IN": w}, "temperatures_c": {"gpu": t},
         "clocks_mhz": {"gpu": clock}, "throttle_events": {"oc1": events}}
        for n, (w, clock, t, events) in enumerate(some)
    ]  # fmt: skip


ABOUT = {"power_mode": "MAXN", "governors": {"gpu": "pinned"}, "clock_limits_mhz": {"gpu": 1000.0}}


def test_energy_is_mean_power_times_time_and_counters_are_differences():
    found = device_health(trace((4, 300, 40, 7)), trace((8, 1000, 50, 100), (10, 1000, 54, 103)), 20.0, ABOUT)
    power = found["power"]
    assert (power["mean_w"], power["idle_w"], power["max_w"]) == (9.0, 4.0, 10)
    assert power["mj_per_image"] == pytest.approx(180.0) and power["mj_per_image_above_idle"] == pytest.approx(100.0)
    assert found["throttle_events"] == {"oc1": 3}
    assert found["temperatures_c"]["gpu"] == {"first": 50, "min": 50, "mean": 52, "max": 54, "last": 54}
    assert found["warnings"] == ["the device throttled: oc1 counted 3 events"]


@pytest.mark.parametrize(
    ("change", "some", "warning"),
    [
        ({"power_mode": "15W"}, (8, 1000, 50, 0), "the power mode is 15W, not MAXN"),
        ({"governors": {"gpu": "nvhost_podgov"}}, (8, 1000, 50, 0), "the gpu's governor is nvhost_podgov"),
        ({}, (8, 900, 50, 0), "the gpu ran at 900 MHz, below its 1000 MHz"),
    ],
)
def test_settings_that_slow_the_device_give_a_warning(change, some, warning):
    (found,) = device_warnings(trace(some, some), {**ABOUT, **change})
    assert found.startswith(warning)


def test_device_at_full_speed_gives_no_warning():
    assert device_warnings(trace((8, 1000, 50, 5), (8, 1000, 50, 5)), {**ABOUT, "power_mode": "MAXN_SUPER"}) == []


def test_changes_during_a_run_are_reported():
    hot = trace(*[(8, 1000, 50, 0)] * 5, *[(6, 600, 71, 4)] * 5)
    assert drift_causes(hot) == [
        "oc1 counted 4 throttle events", "the gpu clock went from 1000 to 600 MHz", "gpu became 21 degrees warmer",
    ]  # fmt: skip
    assert drift_causes(trace(*[(8, 1000, 50, 0)] * 9)) == []


def test_sampler_reads_ten_times_a_second_until_its_end(orin_nano):
    from time import sleep

    sensors = Sensors(orin_nano)
    with Sampler(sensors) as sampler:
        sleep(0.35)
        (orin_nano / "sys/class/hwmon/hwmon0/oc1_event_cnt").write_text("2")
    assert 3 <= len(sampler.samples) <= 6
    times = [sample["t_s"] for sample in sampler.samples]
    assert times == sorted(times) and times[-1] >= 0.35
    assert sampler.samples[-1]["throttle_events"]["oc1"] == 2
