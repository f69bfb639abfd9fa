"""The command `python -m dreamer.bench`, at tiny sizes."""

import json
from pathlib import Path

import pytest

from dreamer.bench import __main__ as bench
from dreamer.bench import report
from dreamer.errors import exit_on_user_error
from tests import tiny_run

TINY = [option for option in tiny_run.OPTIONS if not option.startswith("run.")]
FAST = ["--repeats", "3", "--seconds", "0.1"]
NAMES = {
    *("matrix product", "copy"),
    *("update", "encoder", "observe, forward", "observe", "decoder", "decoder, heads and KL"),
    *("imagination", "actor and critic", "optimizer", "act"),
    *("replay add", "replay sample", "replay update"),
    *("device replay add", "device replay sample", "device replay update"),
    *("environment", "loop"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "out.json"
    assert (
        bench.main(["--what", "all", "--observations", "vector", "--out", str(out), *FAST, *TINY])
        == 0
    )
    return out


@pytest.mark.slow
def test_everything_is_measured(measured: Path) -> None:
    content = json.loads(measured.read_text())
    results = {result["what"]: result for result in content["results"]}
    assert set(results) == NAMES
    assert all(0 < r["low"] <= r["median"] <= r["high"] for r in results.values())
    assert results["update"]["flops"] > results["imagination"]["flops"] > 0
    assert 0 < results["update"]["share_of_limit"] < 1
    assert results["copy"]["moved"] > 2**20
    assert results["device replay sample"]["moved"] > 0
    assert results["act"]["to_host"] > 0
    assert content["peak_host_bytes"] > 2**20
    assert {"device", "git", "versions", "options"} <= set(content)


@pytest.mark.slow
def test_the_table_and_the_comparison(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [*TINY[:3], "--what", "act", "--against", str(measured), *FAST, *TINY[3:]]
    assert bench.main([*argv, "--observations", "vector,image"]) == 0
    out = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out if "|" in line]
    assert [row[:3] for row in rows if row[0] == "act"] == [
        ["act", "nano", "vector"],
        ["act", "nano", "image"],
        ["act", "nano", "vector"],  # compared: the file has no images
    ]
    assert rows[-1][-1].endswith(" x")


def test_a_comparison_says_how_many_times_faster() -> None:
    before = {"what": "act", "size": "1m", "observation": "vector", "median": 0.2, "per_second": 5}
    now = before | {"median": 0.1, "per_second": 10}
    assert report.comparison([now], [before]).splitlines()[-1].split("|")[4:7] == [
        " 200 ms ",
        " 100 ms ",
        " 2.00 x ",
    ]
    assert report.comparison([now], [before | {"size": "12m"}]) == "nothing in common"


BAD = {
    "what": (["--what", "updat"], "--what updat: expected some of limits,update,parts"),
    "observation": (["--observations", "images"], "did you mean image?"),
    "size": (["--sizes", "13m"], "size=13m"),
    "repeats": (["--repeats", "0"], "--repeats must be at least 1"),
    "number": (["--repeats", "x"], "argument --repeats: invalid int value: 'x'"),
    "flag": (["--hwat", "act"], "unrecognized arguments: --hwat"),
    "option": (["agent.unit=3"], "agent.unit=3: no such key"),
    "against": (["--against", "no.json"], "--against no.json cannot be read: No such file"),
    "foreign": (["--against", "README.md"], "--against README.md holds no benchmark"),
    "out": (["--out", "README.md/x.json"], "cannot write README.md/x.json"),
}


@pytest.mark.parametrize(("argv", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line(
    argv: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_on_user_error(lambda: bench.main(argv)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_profile_and_whole_compile_times(tmp_path: Path) -> None:
    import jax

    try:
        argv = [*TINY, "--what", "act", "--observations", "vector", *FAST]
        assert bench.main([*argv, "--cold", "--trace", str(tmp_path)]) == 0
        assert not jax.config.jax_enable_compilation_cache
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert list(tmp_path.rglob("*.xplane.pb"))
